"""Which `--workers` and `--threads` suit which goal: answers a second, p50, memory. Prints Markdown.

One server for each setting over the families `text` and `fashion`, asked in turns by clients that
each wait for their answer before they ask again; who is not asked is paused. Medians over rounds.
"""

import argparse
import http.client
import json
import os
import signal
import statistics
import threading
import time

from served_pool import PIXELS, TEXT, serve

TEXT_128 = TEXT | {"data": [" ".join(["server"] * 126)]}
SETTINGS = [(1, 2), (2, 1), (2, 2), (1, 1)]
CASES = [
    ("`l[0..6]`", 1, [("fashion", PIXELS, "l[0..6]")]),
    ("`l[0..6]`", 8, [("fashion", PIXELS, "l[0..6]")]),
    ("`s[0..6]`", 8, [("fashion", PIXELS, "s[0..6]")]),
    ("`l6[0..6]`", 1, [("text", TEXT_128, "l6[0..6]")]),
    ("`l6[0..6]`", 8, [("text", TEXT_128, "l6[0..6]")]),
    ("`l6[0..6]` in int8", 8, [("text", TEXT_128, "l6[0..6]{int8:0..6}")]),
    (
        "four plans in turn",
        8,
        [
            ("fashion", PIXELS, "l[0..6]"),
            ("fashion", PIXELS, "s[0..6]"),
            ("text", TEXT_128, "l6[0..6]"),
            ("text", TEXT_128, "l6[0..6]{int8:0..6}"),
        ],
    ),
]


class Client(threading.Thread):
    """Asks again and again until its time is over."""

    def __init__(self, server, questions, end):
        super().__init__()
        self.server, self.questions, self.end, self.times = server, questions, end, []

    def run(self):
        connection = http.client.HTTPConnection(self.server.http_address)
        bodies = [
            (
                f"/v2/models/{family}/infer",
                json.dumps({"inputs": [tensor], "parameters": {"plan": plan}}),
            )
            for family, tensor, plan in self.questions
        ]
        while (start := time.perf_counter()) < self.end:
            path, body = bodies[len(self.times) % len(bodies)]
            connection.request("POST", path, body)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise RuntimeError(text)
            self.times.append(time.perf_counter() - start)


def load(server, questions, count, seconds):
    """Returns answers a second and the median time in milliseconds."""
    os.kill(server.process.pid, signal.SIGCONT)
    start = time.perf_counter()
    clients = [
        Client(
            server,
            questions[index % len(questions) :] + questions[: index % len(questions)],
            start + seconds,
        )
        for index in range(count)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    times = [each for client in clients for each in client.times]
    took = time.perf_counter() - start
    os.kill(server.process.pid, signal.SIGSTOP)
    return len(times) / took, statistics.median(times) * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="turns of every setting (default: 3)")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each (default: 1.5)")
    options = parser.parse_args()
    servers = []
    for workers, threads in SETTINGS:
        server = serve("--no-preload", "--workers", str(workers), "--threads", str(threads))
        for _, count, questions in CASES:
            load(server, questions, count, 0.3)
        servers.append(server)
    titles = " | ".join(f"W {workers}, T {threads}" for workers, threads in SETTINGS)
    print(f"| requests a second (p50) | {titles} |\n|---|{'---|' * len(SETTINGS)}")
    for name, count, questions in CASES:
        found = [[] for _ in servers]
        for _ in range(options.rounds):
            for server, own in zip(servers, found, strict=False):
                own.append(load(server, questions, count, options.seconds))
        cells = [
            tuple(statistics.median(values) for values in zip(*own, strict=False)) for own in found
        ]
        row = " | ".join(f"{rate:.0f} ({p50:.1f} ms)" for rate, p50 in cells)
        print(f"| {name}, {count} client{'s' if count > 1 else ''} | {row} |", flush=True)
    for server in servers:
        os.kill(server.process.pid, signal.SIGCONT)
    sizes = [server.memory_bytes() / 1e6 for server in servers]
    print(f"| resident after all of it | {' | '.join(f'{size:.0f} MB' for size in sizes)} |")
    for server in servers:
        server.stop()


if __name__ == "__main__":
    main()
