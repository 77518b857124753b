#!/usr/bin/env python3
"""Measures inference while something else happens beside it, and prints Markdown.

    make beside

Health checks and metrics are asked for at fixed rates over keep-alive connections by a process of its
own; then idle connections are opened, far over the limit. Rounds with and without each follow one
another. Needs Linux and benches/requirements.txt.
"""

import argparse
import multiprocessing
import resource
import selectors
import socket
import statistics
import time

import network
import numpy
import protocols
import serving

ROUNDS, BLOCK = 12, 40
HEALTH = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"
CONNECTIONS = 4
# As many connections from one address as it has ports to spare.
PER_ADDRESS = 20_000


def main():
    """Starts a server, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    protocols.add_options(parser)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--health", type=int, default=10_000, help="health checks a second")
    parser.add_argument("--metrics", type=int, default=1_000, help="scrapes a second")
    parser.add_argument("--idle", type=int, default=100_000, help="idle connections")
    options = parser.parse_args()
    options.pool = protocols.prepare(options)
    values = numpy.random.default_rng(0).normal(size=network.SHAPE).astype(numpy.float32)
    with serving.served(options) as server:
        bare = protocols.Bare(server.http_port, values)
        print("| beside it | reached | inference p50 without | with | ratio |")
        print("|---|---|---|---|---|")
        for name, message, rate in [
            ("health checks", HEALTH, options.health),
            ("metrics scrapes", METRICS, options.metrics),
        ]:
            report(f"{rate:,} {name} a second", *compare(bare, server.http_port, message, rate))
        idle(options.idle, bare, server)


def p50(bare):
    """Returns the median milliseconds of a block of requests."""
    times = []
    for _ in range(BLOCK):
        start = time.perf_counter()
        bare.ask()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[BLOCK // 4 :])


def compare(bare, port, message, rate):
    """Returns the requests a second that were answered, and inference without and with them."""
    alone, beside, reached = [], [], []
    for _ in range(ROUNDS):
        alone.append(p50(bare))
        stop, counts = multiprocessing.Event(), multiprocessing.Queue()
        asker = multiprocessing.Process(target=ask_at, args=(port, message, rate, stop, counts))
        asker.start()
        time.sleep(0.3)
        beside.append(p50(bare))
        stop.set()
        reached.append(counts.get())
        asker.join()
    return f"{statistics.median(reached):,.0f} a second", alone, beside


def ask_at(port, message, rate, stop, counts):
    """Asks at a rate, many requests on each connection at once, and counts the answers."""
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(CONNECTIONS)]
    start, sent, answered = time.perf_counter(), 0, 0
    while not stop.is_set():
        due = int((time.perf_counter() - start) * rate) - sent
        share = min(due // CONNECTIONS, 64)
        if share == 0:
            time.sleep(0.001)
            continue
        for connection in connections:
            connection.sendall(message * share)
        for connection in connections:
            answered += read_answers(connection, share)
        sent += share * CONNECTIONS
    counts.put(answered / (time.perf_counter() - start))


def read_answers(connection, count):
    """Reads so many answers, all of which must be good, to the end of the last."""
    held, found = b"", 0
    while found < count:
        held += connection.recv(1 << 20)
        while (end := held.find(b"\r\n\r\n")) >= 0:
            head = held[:end].lower()
            if not head.startswith(b"http/1.1 200"):
                raise SystemExit(head.decode())
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            if len(held) < end + 4 + length:
                break
            held, found = held[end + 4 + length :], found + 1
    return found


def idle(count, bare, server):
    """Opens idle connections over the limit and reports what became of them."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    count = min(count, most - 100)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    alone = [p50(bare) for _ in range(3)]
    start, opened, failed = time.perf_counter(), [], 0
    beside = []
    for number in range(count):
        address = f"127.0.0.{2 + number // PER_ADDRESS}"
        connection = socket.socket()
        connection.bind((address, 0))
        try:
            connection.connect(("127.0.0.1", server.http_port))
            opened.append(connection)
        except OSError:
            failed += 1
        if number % (count // 5) == count // 10:
            beside.append(p50(bare))
    seconds = time.perf_counter() - start
    selector = selectors.DefaultSelector()
    for connection in opened:
        selector.register(connection, selectors.EVENT_READ)
    closed = len(selector.select(0)) if opened else 0
    memory = server.megabytes()["VmRSS"]
    report(
        f"{count:,} idle connections in {seconds:.0f} s",
        f"{len(opened) - closed:,} open, {closed:,} refused, {failed} failed; {memory:.0f} MB",
        alone,
        beside,
    )


def report(name, reached, alone, beside):
    """Prints a row."""
    ratio = statistics.median(beside) / statistics.median(alone)
    print(
        f"| {name} | {reached} | {statistics.median(alone):.2f} ms "
        f"| {statistics.median(beside):.2f} ms | {ratio:.3f} |"
    )


if __name__ == "__main__":
    main()
