#!/usr/bin/env python3
"""Compares Tessera with PyTriton and MLServer on one machine and one network, and prints Markdown.

    make peers

The network has 12 encoder blocks of DeiT-Ti's size (`network.py`): 151 KB in, 151 KB out. The peers
run it in ONNX Runtime in batches of at most 8, Tessera as the family that `tessera import` makes of
it, each on --threads threads. Clients ask again as soon as they are answered: one, then eight.
In each round everything has its turn between two runs of the raw session in this process, to which
it is compared; who is not measured is paused, so that it takes no processor. Ratios are medians
over rounds, with the least and the largest. The peers are set up in .tessera/peers-*.
"""

import argparse
import contextlib
import dataclasses
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import network
import numpy
import peers_clients
import peers_servers
import peers_setup
import protocols
import serving
from peers_session import open_session
from peers_setup import Unavailable

NUM_CLIENTS = 8
RAW = "raw ONNX Runtime"
BATCHED = (RAW, f"batch {NUM_CLIENTS}")
# The threads of who ran before go to sleep first.
SETTLE_SECONDS = 0.1


def main():
    """Starts the servers, measures them in turn, prints."""
    options = parse_options()
    # Every way to end passes the clean-up.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    options.model = options.folder / "deit.onnx"
    if not options.model.is_file():
        network.write(options.model)
    with contextlib.ExitStack() as stack:
        comparison = Comparison(options)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tessera-peers-"))
        stack.callback(comparison.stop)
        comparison.start(folder)
        for index in range(options.rounds):
            comparison.run_round(index)
    comparison.print_table()
    if options.json:
        options.json.write_text(json.dumps(comparison.report(), indent=1))
    if "Tessera" in comparison.unavailable:
        sys.exit(1)


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    protocols.add_options(parser)
    parser.add_argument("--threads", type=int, default=2, help="threads of each (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument(
        "--seconds",
        type=float,
        default=2,
        help="for each of the measurements of a round (default: 2)",
    )
    parser.add_argument(
        "--only", choices=peers_servers.STARTS, action="append", help="this server; may be repeated"
    )
    parser.add_argument("--json", type=Path, help="file for every round's figures")
    options = parser.parse_args()
    options.folder, options.binary = options.folder.resolve(), options.binary.resolve()
    return options


class Comparison:
    """The servers, the raw session, and what was measured of them."""

    def __init__(self, options):
        self.options, self.servers, self.unavailable, self.found = options, [], {}, {}
        self.session = open_session(options.model, options.threads)
        random = numpy.random.default_rng(0)
        batch = random.normal(size=[NUM_CLIENTS, *network.SHAPE[1:]]).astype(numpy.float32)
        raw = self.connect_raw
        self.examples = [(one, raw(one).ask()) for one in numpy.split(batch, NUM_CLIENTS)]
        self.batch = batch, raw(batch).ask()

    def connect_raw(self, values):
        return peers_clients.Raw(self.session, values)

    def start(self, folder):
        """Starts the servers one after another, and pauses them."""
        for name in self.options.only or peers_servers.STARTS:
            tell(f"starting {name}")
            try:
                server = peers_servers.STARTS[name](self.options, folder)
                self.servers.append(server)
                self.try_out(server)
                server.pause()
            except (Unavailable, subprocess.CalledProcessError, *peers_clients.ERRORS) as error:
                self.drop(name, error)

    def try_out(self, server):
        """Checks that each way of asking gives what the raw session does, also in batches."""
        for connect in peers_clients.ways(server).values():
            peers_clients.measure(connect, self.examples, 1.0)

    def drop(self, name, error):
        """Goes on without a server."""
        self.unavailable[name] = str(error).replace("\n", " ")
        tell(f"{name} is unavailable: {self.unavailable[name]}")
        for server in [one for one in self.servers if one.name == name]:
            server.stop()
            self.servers.remove(server)

    def run_round(self, number):
        """Measures every way of asking once, in an order that turns round from round to round."""
        tell(f"round {number + 1} of {self.options.rounds}")
        turns = [
            (server, *way) for server in self.servers for way in peers_clients.ways(server).items()
        ]
        raw = self.measure_raw()
        self.note(BATCHED, "eight", self.measure_batched(), [raw])
        for server, way, connect in reversed(turns) if number % 2 else turns:
            if server.name in self.unavailable:
                continue
            tell(f"  {server.name}, {way}")
            for clients, examples in (("one", self.examples[:1]), ("eight", self.examples)):
                try:
                    with server.awake():
                        load = self.measure(connect, examples, self.options.seconds)
                except (Unavailable, *peers_clients.ERRORS) as error:
                    self.drop(server.name, error)
                    break
                before, raw = raw, self.measure_raw()
                self.note((server.name, way), clients, load, [before, raw])

    def measure_raw(self):
        """Runs the raw session for half of the time, while every server is paused."""
        load = self.measure(self.connect_raw, self.examples[:1], self.options.seconds / 2)
        for clients in ("one", "eight"):
            self.note((RAW, "batch 1"), clients, load, [load])
        return load

    def measure_batched(self):
        """Runs the raw session on batches."""
        load = self.measure(self.connect_raw, [self.batch], self.options.seconds)
        return peers_clients.Load(load.p50_ms, load.rate * NUM_CLIENTS)

    def measure(self, connect, examples, seconds):
        time.sleep(SETTLE_SECONDS)
        return peers_clients.measure(connect, examples, seconds)

    def note(self, key, clients, load, raw):
        """Keeps what was measured, beside the raw session's runs before and after it."""
        beside = {
            "p50_ratio": load.p50_ms / statistics.mean(one.p50_ms for one in raw),
            "rate_ratio": load.rate / statistics.mean(one.rate for one in raw),
        }
        self.found.setdefault(key, {"one": [], "eight": []})[clients].append(
            dataclasses.asdict(load) | beside
        )

    def stop(self):
        """Ends every server."""
        for server in self.servers:
            server.stop()

    def report(self):
        """Returns everything measured, for machines."""
        rows = [
            {"server": server, "way": way, "clients": loads}
            for (server, way), loads in self.found.items()
        ]
        return {
            "machine": serving.machine(),
            "versions": peers_setup.versions(),
            "threads": self.options.threads,
            "seconds": self.options.seconds,
            "rows": rows,
            "unavailable": self.unavailable,
            "paused_seconds": {server.name: server.paused_seconds for server in self.servers},
        }

    def print_table(self):
        """Prints one row per way of asking."""
        options = self.options
        print(
            f"{serving.machine()}; {options.threads} threads, {options.rounds} rounds, "
            f"{options.seconds:g} s each; {', '.join(peers_setup.versions())}\n"
        )
        print(
            "| server | way | one client, p50 | ÷ raw | 8 clients, p50 | requests/s | ÷ raw |\n"
            "|---|---|---|---|---|---|---|"
        )
        for (server, way), loads in self.found.items():
            if loads["eight"]:
                print(f"| {server} | {way} | {' | '.join(cells(server, **loads))} |")
        for name, reason in self.unavailable.items():
            print(f"\n{name} is unavailable: {reason}")
        times = [load["p50_ms"] for load in self.found[RAW, "batch 1"]["one"]]
        paused = sum(server.paused_seconds for server in self.servers)
        print(
            f"\nThe raw session's p50 went from {min(times):.2f} to {max(times):.2f} ms. While "
            f"others were measured, paused servers took {paused:.2f} s of processor."
        )


def cells(server, one, eight):
    """Returns a row's figures; a raw row has no clients."""
    rates = [f"{median(eight, 'rate'):.1f}", spread(eight, "rate_ratio")]
    if server == RAW:
        return [f"{median(one or eight, 'p50_ms'):.2f} ms", "", "", *rates]
    return [
        f"{median(one, 'p50_ms'):.2f} ms",
        spread(one, "p50_ratio"),
        f"{median(eight, 'p50_ms'):.1f} ms",
        *rates,
    ]


def median(loads, name):
    return statistics.median(load[name] for load in loads)


def spread(loads, name):
    """Returns the median of a figure, the least and the largest."""
    values = [load[name] for load in loads]
    return f"{median(loads, name):.3f} ({min(values):.3f} to {max(values):.3f})"


def tell(message):
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
