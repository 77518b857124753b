"""Connections that do nothing, and more of them than may be."""

import http.client
import json
import select
import socket
import time
import unittest

import grpc
from served import Served
from tritonclient.grpc import service_pb2, service_pb2_grpc

LIMIT = 20
HEADER_SECONDS = 2
IDLE_SECONDS = 4


def seconds_until_closed(connection):
    """Returns how long it takes until the server closes a connection."""
    start = time.monotonic()
    connection.settimeout(30)
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - start


def metric(server, name):
    """Returns the sum of a metric over its labels."""
    connection = http.client.HTTPConnection(server.http_address, timeout=30)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


class Connections(unittest.TestCase):
    """A server with low limits."""

    @classmethod
    def setUpClass(cls):
        cls.server = Served(
            "--max-connections",
            str(LIMIT),
            "--header-timeout",
            str(HEADER_SECONDS),
            "--idle-timeout",
            str(IDLE_SECONDS),
            families=["fashion"],
        )
        cls.addresses = {
            "http": ("127.0.0.1", cls.server.http),
            "grpc": ("127.0.0.1", cls.server.grpc),
        }

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    def test_who_says_nothing_or_not_enough_is_closed(self):
        for port, said in [
            ("http", b""),
            ("grpc", b""),
            ("http", b"GET /v2 HTTP/1.1\r\nhost: x\r\n"),
            ("http", b"PRI * HTT"),
            ("grpc", b"PRI * HTT"),
            ("grpc", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"),
            # A frame that is cut short: 16 bytes of settings are announced.
            ("grpc", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x10\4\0\0\0\0\0\0"),
        ]:
            with self.subTest(port=port, said=said):
                with socket.create_connection(self.addresses[port]) as connection:
                    connection.sendall(said)
                    closed = seconds_until_closed(connection)
                self.assertGreater(closed, HEADER_SECONDS - 0.5)
                self.assertLess(closed, HEADER_SECONDS + 3)

    def test_who_has_asked_may_stay_for_a_while(self):
        with socket.create_connection(self.addresses["http"]) as connection:
            connection.sendall(b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n")
            time.sleep(HEADER_SECONDS + 0.5)
            connection.sendall(b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n")
            closed = seconds_until_closed(connection)
        self.assertGreater(closed, IDLE_SECONDS - 0.5)
        self.assertLess(closed, IDLE_SECONDS + 3)

    def test_a_head_without_end_is_refused(self):
        with socket.create_connection(self.addresses["http"]) as connection:
            connection.sendall(b"GET /v2 HTTP/1.1\r\n")
            try:
                for _ in range(64):
                    connection.sendall(b"x: " + b"y" * 16384 + b"\r\n")
                connection.settimeout(10)
                answer = connection.recv(64)
            except (BrokenPipeError, ConnectionResetError):
                answer = b"HTTP/1.1 431"
        self.assertTrue(answer.startswith(b"HTTP/1.1 431"), answer)


class Crowded(unittest.TestCase):
    """A server with as many connections as it takes."""

    def ask(self):
        """Returns the answer to a request on a connection of its own, and its body."""
        connection = http.client.HTTPConnection(self.server.http_address, timeout=10)
        connection.request("GET", "/v2")
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response, body

    def until(self, status):
        """Asks until the answer has a status, for at most ten seconds."""
        deadline = time.monotonic() + 10
        while True:
            response, body = self.ask()
            if response.status == status or time.monotonic() > deadline:
                self.assertEqual(response.status, status)
                return response, body

    def fill(self):
        """Takes all places. A connection that is refused beside one that ends is opened again."""
        idle = []
        while True:
            while len(idle) < LIMIT:
                idle.append(socket.create_connection(("127.0.0.1", self.server.http)))
            refused, _, _ = select.select(idle, [], [], 0.3)
            if not refused:
                return idle
            for one in refused:
                idle.remove(one)
                one.close()

    def refusal(self):
        """Calls until a call is refused, for at most ten seconds, and returns the error."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with grpc.insecure_channel(self.server.grpc_address) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                try:
                    stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=10)
                except grpc.RpcError as error:
                    return error
        return self.fail("no call is refused")

    def test_over_the_limit_each_is_told(self):
        self.server = Served("--max-connections", str(LIMIT), families=["fashion"])
        self.addCleanup(self.server.stop)
        idle = self.fill()
        response, body = self.until(503)
        self.assertEqual(response.headers["retry-after"], "1")
        answer = json.loads(body)
        self.assertEqual(answer["code"], "unavailable")
        self.assertIn("too many connections", answer["error"])
        refusal = self.refusal()
        self.assertEqual(refusal.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertIn("too many connections", refusal.details())
        for one in idle:
            one.close()
        self.until(200)
        self.assertGreaterEqual(metric(self.server, "tessera_api_connections_refused_total"), 2)


if __name__ == "__main__":
    unittest.main()
