#!/usr/bin/env python3
"""Asks a server a great many things at once, and checks that all of them come to an end.

    python3 benches/soak.py --binary target/release/tessera --requests 100000

Random budgets, priorities and plans; clients that go in the middle of a request or before the
answer; what is no request at all. Counts must add up, by the server's own metrics: accepted =
answered + refused + cancelled; every request that was waited for has an answer; memory stays flat.
Needs Python 3.9 and nothing else. Ends with 1 where something does not hold.
"""

import argparse
import collections
import contextlib
import http.client
import json
import random
import socket
import struct
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support import ROOT, Served, eventually

INFER = "/v2/models/fashion/infer"
PIXELS = struct.pack("<784f", *(index % 7 / 7 for index in range(784)))
PLANS = ["s[0..3]", "s[0..6]", "m[0..6]{int8:0..6}", "l[0..6]", "s[0..2]>m[2..6]"]
# What is asked, of a hundred.
KINDS = {"budget": 62, "plan": 10, "quality": 8, "gone": 8, "cut": 4, "bad": 8}
# How much more memory than after the first fifth may be held at the end.
MAX_GROWTH = 0.05
# The second says where the server listens.
LOG = "error,tessera::api::transport::server=info"


def request(parameters, pixels=PIXELS, shape=(1, 1, 28, 28)):
    """Returns a request with raw tensors, head and body."""
    tensor = {
        "name": "pixel_values",
        "shape": shape,
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(pixels)},
    }
    document = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    return post(document + pixels, len(document))


def post(body, json_length):
    """Returns the bytes of a request."""
    head = (
        f"POST {INFER} HTTP/1.1\r\nhost: soak\r\ncontent-length: {len(body)}\r\n"
        f"inference-header-content-length: {json_length}\r\n\r\n"
    )
    return head.encode() + body


def bad(random_):
    """Returns a request that is wrong."""
    return random_.choice(
        [
            lambda: post(b"{" * 50, 50),
            lambda: request({}, PIXELS[:-4]),
            lambda: request({}, shape=[1, 784]),
            lambda: request({"latency_budget_ms": -1}),
            lambda: request({"plan": "x[0..1]"}),
            lambda: request({"latency_budget_ms": 1e-5}),
            lambda: request({"unheard": "of"}),
        ]
    )()


class Client(threading.Thread):
    """A client that asks again and again."""

    def __init__(self, port, num_requests, seed):
        super().__init__()
        self.port, self.left = port, num_requests
        self.random = random.Random(seed)
        self.connection = None
        self.counts = collections.Counter()

    def run(self):
        while self.left:
            self.left -= 1
            kind = self.random.choices(list(KINDS), list(KINDS.values()))[0]
            self.ask(kind)

    def message(self, kind):
        """Returns the bytes to send."""
        latency = 10 ** self.random.uniform(-0.3, 2)
        parameters: dict[str, object] = {
            "latency_budget_ms": latency,
            "priority": self.random.randint(0, 3),
        }
        if kind == "plan":
            parameters["plan"] = self.random.choice(PLANS)
        if kind == "quality":
            parameters["min_quality"] = self.random.uniform(0.85, 0.95)
        return bad(self.random) if kind == "bad" else request(parameters)

    def ask(self, kind):
        """Sends one request, and waits for its answer unless it goes before."""
        message = self.message(kind)
        if self.connection is None:
            self.connection = socket.create_connection(("127.0.0.1", self.port), 60)
        if kind == "cut":
            self.connection.sendall(message[: self.random.randrange(1, len(message))])
        else:
            self.connection.sendall(message)
        if kind in ("cut", "gone"):
            time.sleep(self.random.choice([0, 0, 0.001, 0.003]))
            self.connection.close()
            self.connection = None
            self.counts[kind] += 1
            return
        response = http.client.HTTPResponse(self.connection)
        response.begin()
        answer = json.loads(response.read())
        if response.status == 200 and "outputs" not in answer:
            raise RuntimeError(f"no answer: {answer}")
        self.counts[response.status] += 1


def ended(metrics):
    """Returns how many requests were accepted, and how many ended by code."""
    accepted = metrics.total("tessera_api_requests_accepted_total")
    codes = metrics.by("code", "tessera_api_requests_total")
    return int(accepted), collections.Counter({code: int(n) for code, n in codes.items()})


def has_ended(server):
    """Returns whether every request that was accepted has ended."""
    accepted, codes = ended(server.metrics())
    return accepted == sum(codes.values())


def soak(server, options):
    """Asks everything; returns what clients counted and what was held at first and at the end."""
    clients = [
        Client(server.http_port, options.requests // options.clients, seed)
        for seed in range(options.clients)
    ]
    start = time.monotonic()
    for client in clients:
        client.start()
    first = None
    while any(client.is_alive() for client in clients):
        time.sleep(0.5)
        left = sum(client.left for client in clients)
        if first is None and left < 0.8 * options.requests:
            first = server.memory_bytes()
        print(f"\r{left} left, {time.monotonic() - start:.0f} s ", end="", file=sys.stderr)
    counts = sum((client.counts for client in clients), collections.Counter())
    print(f"\r{sum(counts.values())} requests in {time.monotonic() - start:.0f} s", file=sys.stderr)
    if any(client.left for client in clients):
        sys.exit("a client did not get all its answers")
    return counts, first, server.memory_bytes()


def check(server, counts, first, last):
    """Prints what was found; tells whether everything holds."""
    # Where a request does not end, the figures below say so.
    with contextlib.suppress(AssertionError):
        eventually(lambda: has_ended(server))
    accepted, codes = ended(server.metrics())
    waited = sum(count for kind, count in counts.items() if isinstance(kind, int))
    depth = int(server.metric("tessera_serve_queue_depth"))
    growth = last / first - 1
    print(f"clients: {dict(sorted(counts.items(), key=str))}")
    print(f"server: {accepted} accepted = {' + '.join(f'{n} {code}' for code, n in codes.items())}")
    print(
        f"in the queue: {depth}; memory {first / 1e6:.1f} MB, then {last / 1e6:.1f} MB "
        f"({growth:+.1%})"
    )
    holds = {
        "every accepted request ended": accepted == sum(codes.values()),
        "every answer that came was counted": codes["ok"] >= counts[200],
        "nobody was forgotten": accepted >= waited,
        "nothing failed inside": codes["internal"] == 0 and counts[500] == 0,
        "the queue is empty": depth == 0,
        "memory is flat": growth <= MAX_GROWTH,
    }
    for what, is_so in holds.items():
        print(f"{'yes' if is_so else 'NO'}: {what}")
    return all(holds.values())


def main():
    """Starts the server, asks, checks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", default="target/release/tessera")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--threads", default="1")
    parser.add_argument("--workers", default="1")
    options = parser.parse_args()
    families = {"fashion": ROOT / "models" / "fashion"}
    server = Served(
        families,
        "--no-grpc",
        "--threads",
        options.threads,
        "--workers",
        options.workers,
        "--log",
        LOG,
        binary=Path(options.binary).resolve(),
    )
    with server:
        server.wait_until_loaded()
        holds = check(server, *soak(server, options))
    print("".join(line for line in server.messages().splitlines(True) if " ERROR " in line), end="")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
