"""Clients that break HTTP/1, HTTP/2 and gRPC on purpose, from a fixed seed.

Afterwards each protocol answers, and nothing of the clients is left: neither connections, nor
threads, nor memory. `HOSTILE_ROUNDS` is how many times each of them comes, with other numbers.
"""

import contextlib
import json
import os
import random
import re
import socket
import struct
import unittest

import frames
import grpc
from frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    call,
    fields,
    frame,
    literal,
    message,
    request,
    request_head,
    settings,
)
from served import FASHION, PIXELS, Served, eventually, post
from tritonclient.grpc import service_pb2, service_pb2_grpc

ROUNDS = int(os.environ.get("HOSTILE_ROUNDS", "1"))
MAX_GROWTH = 64 << 20
BODY = json.dumps({"inputs": [PIXELS]}).encode()
INFER = "/v2/models/fashion/infer"
HTTP1 = (
    b"POST /v2/models/fashion/infer HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n" % len(BODY) + BODY
)
START = PREFACE + settings()
BOMB = message(frames.bomb(64 << 20), 1)
MANY_FIELDS = message(frames.gzip.compress(b"\x3a\x00" * (4 << 20)), 1)
ODD = [0, 1, 0x7FFF, 0xFFFF, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1]


def settings_flood(choice):
    return START + settings(_4=choice.choice([0, 65535])) * 5000


def odd_settings(choice):
    pairs = b"".join(
        struct.pack(">HI", choice.randrange(10), choice.choice(ODD)) for _ in range(20)
    )
    return START + frame(SETTINGS, payload=pairs) + frame(SETTINGS, ACK, payload=pairs)


def uneven_settings(choice):
    return START + frame(SETTINGS, choice.choice([0, ACK]), choice.choice([0, 1]), bytes(5))


def ping_flood(choice):
    return START + frame(PING, payload=choice.randbytes(8)) * 5000


def closed_windows(choice):
    asked = b"".join(request(1 + 2 * i, "GET", "/openapi.json") for i in range(100))
    return PREFACE + settings(_4=0) + asked


def odd_windows(choice):
    updates = [
        frame(WINDOW_UPDATE, 0, choice.choice([0, 1, 3]), struct.pack(">I", choice.choice(ODD)))
        for _ in range(50)
    ]
    return START + request(1, "GET", "/v2") + b"".join(updates)


def rapid_resets(choice):
    """Requests that are taken back at once (CVE-2023-44487)."""
    reset = struct.pack(">I", choice.choice([0, 8]))
    asked = [
        request(stream, "POST", INFER, body=BODY[:64]) + frame(RST_STREAM, 0, stream, reset)
        for stream in range(1, 4001, 2)
    ]
    return START + b"".join(asked)


def resets_by_the_server(choice):
    """Requests that the server takes back (CVE-2025-8671)."""
    asked = [
        request(stream, "GET", "/v2") + frame(WINDOW_UPDATE, 0, stream, bytes(4))
        for stream in range(1, 2001, 2)
    ]
    return START + b"".join(asked)


def endless_head(choice):
    """A head without an end (CVE-2024-27316)."""
    first = frame(HEADERS, 0, 1, request_head("GET", "/v2"))
    more = fields(("x-" + "y" * 50, "z" * 4000)) * 4
    return START + first + frame(CONTINUATION, 0, 1, more) * choice.choice([200, 1000])


def empty_continuations(choice):
    first = frame(HEADERS, 0, 1, request_head("GET", "/v2"))
    return START + first + frame(CONTINUATION, 0, 1) * 20000


def large_head(choice):
    block = request_head("GET", "/v2") + fields(("x", "y" * choice.choice([100, 10000]))) * 100
    parts = [block[start : start + 16384] for start in range(0, len(block), 16384)]
    sent = [frame(HEADERS, 0, 1, parts[0])]
    sent += [frame(CONTINUATION, 0, 1, part) for part in parts[1:]]
    return START + b"".join(sent) + frame(CONTINUATION, END_HEADERS, 1)


def packed_head(choice):
    """A field of 4 KB in the table, which one byte names (an HPACK bomb)."""
    block = request_head("GET", "/v2") + literal("x", "y" * 4000, first=0x40)
    named = block + bytes([0x80 | 62]) * 16000
    return START + frame(HEADERS, END_HEADERS | END_STREAM, 1, named[:16384])


def wrong_heads(choice):
    blocks = [
        bytes([0x80]),
        frames.integer(2**40, 7, 0x80),
        bytes([0xFF] * 12),
        frames.integer(2**31, 5, 0x20),
        b"\x00\xff\xff\xff\xff\x0f",
        b"\x00" + bytes([0x80 | 30]) + b"\xff" * 30,
        fields((":path", "/v2")),
        fields((":method", "GET"), (":method", "GET"), (":path", "/"), (":scheme", "http")),
        request_head("GET", "/v2", ("Upper", "case")),
        request_head("GET", "/v2", ("connection", "keep-alive")),
        request_head("GET", "/v2", ("bad\n", "x\r\ny")),
        request_head("GET", "v2 \0"),
        request_head("CONNECT", "/v2"),
        request_head("GET", "/v2", (":late", "x")),
        choice.randbytes(200),
    ]
    flags = END_HEADERS | END_STREAM
    sent = [frame(HEADERS, flags, 1 + 2 * i, block) for i, block in enumerate(blocks)]
    choice.shuffle(sent)
    return START + b"".join(sent)


def wrong_frames(choice):
    reset = struct.pack(">I", 8)
    sent = [
        frame(DATA, END_STREAM, 0, b"x"),
        frame(DATA, PADDED, 1, b"\xff"),
        frame(HEADERS, PADDED | END_HEADERS, 1, b"\xff\0"),
        frame(HEADERS, END_HEADERS, 2, request_head("GET", "/v2")),
        frame(PRIORITY, 0, 1, struct.pack(">IB", 1, 255)),
        frame(PRIORITY, 0, 1, b"x"),
        frame(RST_STREAM, 0, 0, reset),
        frame(RST_STREAM, 0, 99, reset),
        frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4) + request_head("GET", "/v2")),
        frame(PING, 0, 1, bytes(8)),
        frame(PING, payload=bytes(7)),
        frame(GOAWAY, payload=bytes(8) + choice.randbytes(100)),
        frame(WINDOW_UPDATE, payload=bytes(3)),
        frame(CONTINUATION, END_HEADERS, 1, b""),
        frame(choice.randrange(10, 256), 255, 1, choice.randbytes(50)),
        frame(DATA, 0, 1, b"", length=2**24 - 1) + bytes(20000),
        frame(SETTINGS, length=2**24 - 1),
    ]
    return START + request(1, "GET", "/v2") + choice.choice(sent) + choice.choice(sent)


def wrong_bodies(choice):
    said = choice.choice(["0", "1", "-1", "x", "99999999999999999999", str(len(BODY) + 1)])
    return START + request(1, "POST", INFER, ("content-length", said), body=BODY)


def half_messages(choice):
    whole = choice.choice([HTTP1, START + request(1, "POST", INFER, body=BODY)])
    return whole[: choice.randrange(len(whole))]


def wrong_calls(choice):
    packed = frames.bomb(1000)
    body, encoding = choice.choice(
        [
            (message(packed, 1), "gzip"),
            (message(packed, 1, length=len(packed) + 1), "gzip"),
            (message(packed, 1, length=1) + bytes(100), "gzip"),
            (message(packed[:-5], 1), "gzip"),
            (message(b"x", 1, length=2**32 - 1), "gzip"),
            (message(b"x", 0, length=2**32 - 1), "identity"),
            (message(b"not gzip", 1), "gzip"),
            (message(packed, 1), "identity"),
            (message(packed, 1), "zstd"),
            (message(packed, 255), "gzip"),
            (BOMB, "gzip"),
            (message(b"\x2a\x00" * 100000), "identity"),
            (MANY_FIELDS, "gzip"),
            (message(b"\x0a\x07fashion") * 1000, "identity"),
            (b"\0\0", "identity"),
            (b"", "identity"),
        ]
    )
    name = choice.choice(["ModelInfer", "ModelStreamInfer", "ModelReady", "Nothing", ""])
    wait = choice.choice(["1n", "99999999H", "18446744073709551615S", "x", ""])
    more = [("grpc-encoding", encoding), ("grpc-timeout", wait)]
    return START + call(1, name, body, *more) + call(3, name, body, *more)


def wrong_heads_of_http1(choice):
    infer = b"POST /v2/models/fashion/infer HTTP/1.1\r\nhost: x\r\n"
    return choice.choice(
        [
            infer + b"content-length: 5\r\ncontent-length: 6\r\n\r\n" + BODY,
            infer + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            infer + b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
            infer + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nx",
            infer + b"transfer-encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
            infer + b"transfer-encoding: chunked\r\n\r\n1;" + b"a" * 100000 + b"\r\nx\r\n",
            infer + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20000,
            infer + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 20000,
            infer + b"content-length: 18446744073709551616\r\n\r\n",
            infer + b"content-length: -5\r\n\r\n",
            infer + b"no colon\r\n\r\n",
            infer + b"bad\0: x\r\n\r\n",
            infer + b" folded: x\r\n\r\n",
            infer + b"x: " + b"y" * 400000,
            infer + b"x: y\r\n" * 5000 + b"\r\n",
            infer + b"expect: 100-continue\r\ncontent-length: 10\r\n\r\n",
            infer + b"upgrade: h2c\r\nconnection: upgrade, http2-settings\r\n\r\n",
            b"GET " + b"/v2" * 100000 + b" HTTP/1.1\r\n\r\n",
            b"GET /%ff%00%2e%2e/%zz HTTP/1.1\r\nhost: x\r\n\r\n",
            b"GET http://[::1/v2 HTTP/1.1\r\nhost: x\r\n\r\n",
            b"\r\n" * 50000,
            b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n" * 2000,
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + choice.randbytes(500),
        ]
    )


def changed(choice):
    """Good bytes with a few changes."""
    sent = choice.choice(
        [
            HTTP1,
            START + request(1, "POST", INFER, body=BODY) + request(3, "GET", "/metrics"),
            START + call(1, "ModelReady", message(b"\x0a\x07fashion")),
            START + call(1, "ModelStreamInfer", message(b"\x0a\x07fashion") * 5),
        ]
    )
    sent = bytearray(sent)
    for _ in range(choice.randrange(1, 6)):
        place = choice.randrange(len(sent))
        kind = choice.randrange(4)
        if kind == 0:
            sent[place] = choice.randrange(256)
        elif kind == 1:
            del sent[place : place + choice.randrange(40)]
        elif kind == 2:
            sent[place:place] = choice.randbytes(choice.randrange(20))
        else:
            end = place + choice.randrange(200)
            sent[place:place] = sent[place:end] * choice.randrange(1, 50)
        if not sent:
            break
    return bytes(sent)


def noise(choice):
    return choice.choice([b"", START]) + choice.randbytes(choice.choice([100, 100000]))


ATTACKS = [
    settings_flood,
    odd_settings,
    uneven_settings,
    ping_flood,
    closed_windows,
    odd_windows,
    rapid_resets,
    resets_by_the_server,
    endless_head,
    empty_continuations,
    large_head,
    packed_head,
    wrong_heads,
    wrong_frames,
    wrong_bodies,
    half_messages,
    noise,
]
# These have many forms, of which each round takes some.
VARIED = [wrong_calls, wrong_heads_of_http1, changed]
NUM_VARIED = 25


class Hostile(unittest.TestCase):
    """A server whose clients break its protocols."""

    @classmethod
    def setUpClass(cls):
        cls.server = Served("--header-timeout", "2", "--idle-timeout", "2", families=FASHION)
        cls.addresses = [
            ("127.0.0.1", cls.server.http_port),
            ("127.0.0.1", cls.server.grpc_port),
        ]

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    def attack(self, address, sent, choice):
        """Sends bytes, reads a part of the answer or nothing of it, and goes."""
        with contextlib.suppress(OSError), socket.create_connection(address, 5) as connection:
            connection.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                connection.sendall(sent)
            if choice.randrange(2):
                connection.recv(1 << 16)
            if choice.randrange(8) == 0:
                # Closed with a reset.
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def check_answers(self):
        """Asks over each protocol."""
        status, answer = post(self.server, "fashion", PIXELS)
        self.assertEqual(status, 200, answer)
        with socket.create_connection(self.addresses[0], 30) as connection:
            connection.sendall(START + request(1, "POST", INFER, body=BODY))
            received = b""
            while b"model_name" not in received:
                part = connection.recv(1 << 16)
                self.assertTrue(part, received)
                received += part
        tensor = service_pb2.ModelInferRequest.InferInputTensor(
            name="pixel_values", shape=PIXELS["shape"], datatype="FP32"
        )
        tensor.contents.fp32_contents.extend(PIXELS["data"])
        asked = service_pb2.ModelInferRequest(model_name="fashion", inputs=[tensor])
        with grpc.insecure_channel(self.server.grpc_address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            self.assertEqual(stub.ModelInfer(asked, timeout=30).model_name, "fashion")

    def num_threads(self):
        with open(f"/proc/{self.server.process.pid}/status") as status:
            return int(re.search(r"^Threads:\s+(\d+)", status.read(), re.M)[1])

    def is_alone(self):
        """Returns whether no connection is open but the one that asks."""
        return self.server.metric("tessera_api_connections") <= 1

    def all_attacks(self, choice):
        for attack in ATTACKS:
            for address in self.addresses:
                self.attack(address, attack(choice), choice)
        for attack in VARIED:
            for _ in range(NUM_VARIED):
                self.attack(choice.choice(self.addresses), attack(choice), choice)

    def test_nothing_is_left_of_them(self):
        choice = random.Random(7)
        self.check_answers()
        # What is allocated once, such as threads and their buffers, is allocated in this round.
        self.all_attacks(choice)
        self.check_answers()
        eventually(self.is_alone, 60)
        memory = self.server.memory_bytes()
        for _ in range(ROUNDS):
            self.all_attacks(choice)
        self.check_answers()
        eventually(self.is_alone, 60)
        grown = self.server.memory_bytes() - memory
        self.assertLess(grown, MAX_GROWTH, "bytes")
        # Threads for blocking work end when they have had none for ten seconds.
        eventually(lambda: self.num_threads() <= 4 + 2 * os.cpu_count() + 8, 60)
        accepted = self.server.metric("tessera_api_requests_accepted_total")
        eventually(lambda: self.server.metric("tessera_api_requests_total") == accepted)
        self.assertEqual(self.server.metric("tessera_serve_queue_depth"), 0)
        self.assertNotIn("panicked", self.server.messages())


if __name__ == "__main__":
    unittest.main()
