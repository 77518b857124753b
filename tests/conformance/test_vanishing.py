"""Clients that go in the middle of a request, while it waits, or in the middle of the answer."""

import json
import socket
import threading
import unittest

from served import PIXELS, Served, eventually

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
        connection = socket.create_connection(("127.0.0.1", cls.server.http_port), 60)
        connection.sendall(data)
        return connection

    @classmethod
    def ask(cls, family, tensor, **parameters):
        """Returns the status of a request whose client stays."""
        with cls.send(message(family, tensor, **parameters)) as connection:
            return int(connection.makefile("rb").readline().split()[1])

    def has_settled(self):
        """Returns whether every request that was accepted has ended, and nothing waits."""
        metrics = self.server.metrics()
        accepted = metrics.total("tessera_api_requests_accepted_total")
        # A place in the queue is left when an inference thread looks at it next.
        waiting = metrics.total("tessera_serve_queue_depth")
        return accepted == metrics.total("tessera_api_requests_total") and waiting == 0

    def assert_settled(self):
        """Waits until nothing is left of the requests, and asks one more."""
        eventually(self.has_settled)
        self.assertEqual(self.ask("fashion", PIXELS), 200)

    def test_who_goes_in_the_middle_of_a_request_leaves_nothing(self):
        before = self.server.metric("tessera_api_requests_accepted_total")
        whole = message("fashion", PIXELS)
        for length in range(1, len(whole), len(whole) // NUM_CLIENTS):
            self.send(whole[:length]).close()
        self.assertEqual(self.server.metric("tessera_api_requests_accepted_total"), before)
        self.assert_settled()

    def test_who_goes_while_it_waits_costs_no_compute(self):
        metric = self.server.metric
        num_ran = lambda: metric("tessera_serve_batch_size_sum", family="fashion")
        num_waiting = lambda: metric("tessera_serve_queue_depth", family="fashion")
        num_gone = lambda: metric("tessera_api_requests_total", code="cancelled", family="fashion")
        text_modules = lambda: metric(
            "tessera_runtime_module_duration_seconds_count", family="text"
        )
        ran, gone, modules = num_ran(), num_gone(), text_modules()
        long = threading.Thread(target=self.ask, args=("text", TEXTS), kwargs={"plan": "l6[0..6]"})
        long.start()
        # It has the only inference thread once the first of its modules has run.
        eventually(lambda: text_modules() > modules, pause=0.001)
        connections = [self.send(message("fashion", PIXELS)) for _ in range(NUM_CLIENTS)]
        eventually(lambda: num_waiting() == NUM_CLIENTS or not long.is_alive(), pause=0.001)
        self.assertEqual(num_waiting(), NUM_CLIENTS, "the long request was too short")
        for connection in connections:
            connection.close()
        long.join()
        eventually(lambda: num_gone() == gone + NUM_CLIENTS)
        self.assertEqual(num_ran(), ran)
        self.assert_settled()

    def test_who_goes_in_the_middle_of_the_answer_leaves_nothing(self):
        for _ in range(3):
            connection = self.send(message("text", TEXTS))
            self.assertTrue(connection.recv(10).startswith(b"HTTP/1.1 "))
            connection.close()
        self.assert_settled()


if __name__ == "__main__":
    unittest.main()
