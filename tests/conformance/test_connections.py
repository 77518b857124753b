"""Connections that do nothing, and more of them than may be."""

import http.client
import json
import socket
import time
import unittest

import grpc
from served import FASHION, Served, eventually
from tritonclient.grpc import service_pb2, service_pb2_grpc

LIMIT = 20
HEADER_SECONDS = 1
IDLE_SECONDS = 3
# Far less than the server's own timeouts where the tests set none.
CLOSED_SECONDS = 60


def seconds_until_closed(connection, start):
    """Waits until the server closes a connection; returns the seconds since `start`."""
    connection.settimeout(CLOSED_SECONDS)
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - start


class Silent(unittest.TestCase):
    """A server that waits for a request's head for a second, and hardly ends for idle ones.

    How long it waits is what is tested, so a test may ask for at least that time.
    """

    @classmethod
    def setUpClass(cls):
        cls.server = Served("--header-timeout", str(HEADER_SECONDS), families=FASHION)
        cls.addresses = {
            "http": ("127.0.0.1", cls.server.http_port),
            "grpc": ("127.0.0.1", cls.server.grpc_port),
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
                start = time.monotonic()
                with socket.create_connection(self.addresses[port]) as connection:
                    connection.sendall(said)
                    seconds = seconds_until_closed(connection, start)
                self.assertGreaterEqual(seconds, HEADER_SECONDS)

    def test_a_head_without_end_is_refused(self):
        with socket.create_connection(self.addresses["http"]) as connection:
            connection.sendall(b"GET /v2 HTTP/1.1\r\n")
            try:
                for _ in range(64):
                    connection.sendall(b"x: " + b"y" * 16384 + b"\r\n")
                connection.settimeout(CLOSED_SECONDS)
                answer = connection.recv(64)
            except (BrokenPipeError, ConnectionResetError):
                answer = b"HTTP/1.1 431"
        self.assertTrue(answer.startswith(b"HTTP/1.1 431"), answer)


class Idle(unittest.TestCase):
    """A server that keeps a connection for longer after a request than before the first.

    How long it does is what is tested, so the test asks for at least that time.
    """

    def test_who_has_asked_may_stay_for_a_while(self):
        options = ["--header-timeout", str(HEADER_SECONDS), "--idle-timeout", str(IDLE_SECONDS)]
        with Served(*options, families=FASHION) as server:
            asked = http.client.HTTPConnection(server.http_address, timeout=CLOSED_SECONDS)
            self.ask(asked)
            with socket.create_connection(("127.0.0.1", server.http_port)) as silent:
                # Opened last: when it is closed, the time for a first head is over for both.
                seconds_until_closed(silent, time.monotonic())
            start = time.monotonic()
            self.ask(asked)
            self.assertGreaterEqual(seconds_until_closed(asked.sock, start), IDLE_SECONDS)
            asked.close()

    def ask(self, connection):
        """Has a request answered on a connection that stays open."""
        connection.request("GET", "/v2")
        response = connection.getresponse()
        response.read()
        self.assertEqual(response.status, 200)


class Crowded(unittest.TestCase):
    """A server with as many connections as it takes."""

    @classmethod
    def setUpClass(cls):
        cls.server = Served("--max-connections", str(LIMIT), families=FASHION)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    def open(self):
        """Asks on a new connection; returns it, the answer and its body."""
        connection = http.client.HTTPConnection(self.server.http_address, timeout=CLOSED_SECONDS)
        connection.request("GET", "/v2")
        response = connection.getresponse()
        return connection, response, response.read()

    def take_place(self):
        """Opens a connection; returns it, or None if the server refuses it."""
        connection, response, _ = self.open()
        if response.status == 200:
            return connection
        connection.close()
        return None

    def refusal(self):
        """Calls over gRPC and returns the error."""
        with grpc.insecure_channel(self.server.grpc_address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with self.assertRaises(grpc.RpcError) as caught:
                stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=CLOSED_SECONDS)
        return caught.exception

    def test_over_the_limit_each_is_told(self):
        # Who was answered has a place, and keeps it. A place of one that has gone may be free late.
        kept = [eventually(self.take_place) for _ in range(LIMIT)]
        refused, response, body = self.open()
        refused.close()
        self.assertEqual(response.status, 503)
        self.assertEqual(response.headers["retry-after"], "1")
        answer = json.loads(body)
        self.assertEqual(answer["code"], "unavailable")
        self.assertIn("too many connections", answer["error"])
        refusal = self.refusal()
        self.assertEqual(refusal.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertIn("too many connections", refusal.details())
        for one in kept:
            one.close()
        eventually(self.take_place).close()
        self.assertGreaterEqual(self.server.metric("tessera_api_connections_refused_total"), 2)


if __name__ == "__main__":
    unittest.main()
