"""Clients that go in the middle of a request, while it waits, or in the middle of the answer."""

import json
import re
import socket
import threading
import time
import unittest
import urllib.request

from served import Served

PIXELS = {"name": "pixel_values", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.5] * 784}
TEXTS = {
    "name": "text",
    "shape": [16],
    "datatype": "BYTES",
    "data": ["It takes a while. " * 40] * 16,
}
NUM_CLIENTS = 20


def message(family, tensor, **parameters):
    """Returns the bytes of a request."""
    body = json.dumps({"inputs": [tensor], "parameters": parameters})
    return (
        f"POST /v2/models/{family}/infer HTTP/1.1\r\nhost: x\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}"
    ).encode()


class Vanishing(unittest.TestCase):
    """A server whose clients do not stay."""

    @classmethod
    def setUpClass(cls):
        cls.server = Served()
        # Loaded, so that what follows takes only its time.
        cls.ask("text", TEXTS, plan="l6[0..6]")
        cls.ask("fashion", PIXELS, plan="l[0..6]")

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    @classmethod
    def send(cls, data):
        """Sends bytes on a connection of their own, and returns it."""
        connection = socket.create_connection(("127.0.0.1", cls.server.http), 60)
        connection.sendall(data)
        return connection

    @classmethod
    def ask(cls, family, tensor, **parameters):
        """Returns the status of a request whose client stays."""
        with cls.send(message(family, tensor, **parameters)) as connection:
            return int(connection.makefile("rb").readline().split()[1])

    def metric(self, name):
        """Returns the sum of the metrics whose name and labels match."""
        with urllib.request.urlopen(f"http://{self.server.http_address}/metrics") as response:
            text = response.read().decode()
        return sum(float(value) for value in re.findall(rf"^{name} (.*)$", text, re.M))

    def assert_settled(self):
        """Waits until every request that was accepted has ended, and nothing waits."""
        deadline = time.monotonic() + 30
        while True:
            accepted = self.metric("tessera_api_requests_accepted_total{.*}")
            ended = self.metric("tessera_api_requests_total{.*}")
            # A place in the queue is left when an inference thread looks at it next.
            waiting = self.metric("tessera_serve_queue_depth{.*}")
            if (accepted == ended and waiting == 0) or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        self.assertEqual(accepted, ended)
        self.assertEqual(waiting, 0)
        self.assertEqual(self.ask("fashion", PIXELS), 200)

    def test_who_goes_in_the_middle_of_a_request_leaves_nothing(self):
        before = self.metric("tessera_api_requests_accepted_total{.*}")
        whole = message("fashion", PIXELS)
        for length in range(1, len(whole), len(whole) // NUM_CLIENTS):
            self.send(whole[:length]).close()
        self.assertEqual(self.metric("tessera_api_requests_accepted_total{.*}"), before)
        self.assert_settled()

    def test_who_goes_while_it_waits_costs_no_compute(self):
        ran = 'tessera_serve_batch_size_sum{family="fashion"}'
        before = self.metric(ran)
        cancelled = 'tessera_api_requests_total{code="cancelled",family="fashion"}'
        gone = self.metric(cancelled)
        text = 'tessera_api_requests_accepted_total{family="text"}'
        texts = self.metric(text)
        long = threading.Thread(target=self.ask, args=("text", TEXTS), kwargs={"plan": "l6[0..6]"})
        long.start()
        deadline = time.monotonic() + 30
        # It is taken out of the queue when it begins to run.
        while self.metric(text) == texts and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        connections = [self.send(message("fashion", PIXELS)) for _ in range(NUM_CLIENTS)]
        waiting = 'tessera_serve_queue_depth{family="fashion"}'
        while self.metric(waiting) < NUM_CLIENTS and long.is_alive():
            time.sleep(0.001)
        self.assertEqual(self.metric(waiting), NUM_CLIENTS, "the long request was too short")
        for connection in connections:
            connection.close()
        long.join()
        while self.metric(cancelled) < gone + NUM_CLIENTS and time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertEqual(self.metric(cancelled), gone + NUM_CLIENTS)
        self.assertEqual(self.metric(ran), before)
        self.assert_settled()

    def test_who_goes_in_the_middle_of_the_answer_leaves_nothing(self):
        for _ in range(3):
            connection = self.send(message("text", TEXTS))
            self.assertTrue(connection.recv(10).startswith(b"HTTP/1.1 "))
            connection.close()
        self.assert_settled()


if __name__ == "__main__":
    unittest.main()
