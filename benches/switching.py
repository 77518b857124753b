#!/usr/bin/env python3
"""Measures what it costs to run another plan at every request, over HTTP, and prints Markdown.

    python3 benches/switching.py --binary target/release/tessera

Two plans of the family `fashion` are asked for in runs of one plan and in turns, block by block, so
that the machine's wandering speed meets both alike. The extra cost is what a request takes in turns
minus what the same plan takes in runs, by the server's own clock. Needs Python 3.9 and nothing else.
"""

import argparse
import json
import random
import statistics
from pathlib import Path

import serving

PLANS = ["s[0..2]>m[2..6]", "l[0..6]{w33:0..6}"]
ROUNDS, BLOCK = 40, 50
INFER = "/v2/models/fashion/infer"


def main():
    """Starts a server, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = serving.ROOT
    parser.add_argument("--binary", type=Path, default=root / "target/release/tessera")
    parser.add_argument("--pool", type=Path, default=root / "models")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/tessera")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    random.seed(0)
    pixels = [round(random.gauss(0, 1), 3) for _ in range(784)]
    bodies = {plan: body(plan, pixels) for plan in PLANS}
    with serving.served(options) as server:
        for plan in PLANS * 100:
            ask(server, bodies[plan])
        fixed, turns = {plan: [] for plan in PLANS}, {plan: [] for plan in PLANS}
        for number in range(ROUNDS):
            measures = [
                lambda: runs(server, bodies, fixed),
                lambda: in_turns(server, bodies, turns),
            ]
            for measure in measures if number % 2 else reversed(measures):
                measure()
    print("| plan | always it: p50, p99 | in turns: p50, p99 | extra: p50, p99 |")
    print("|---|---|---|---|")
    for plan in PLANS:
        (a50, a99), (b50, b99) = percentiles(fixed[plan]), percentiles(turns[plan])
        print(
            f"| `{plan}` | {a50:.0f}, {a99:.0f} µs | {b50:.0f}, {b99:.0f} µs "
            f"| {b50 - a50:+.0f}, {b99 - a99:+.0f} µs |"
        )


def body(plan, pixels):
    """Returns a request."""
    tensor = {"name": "pixel_values", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": pixels}
    return json.dumps({"inputs": [tensor], "parameters": {"plan": plan}}).encode()


def ask(server, request):
    """Returns the server's total in microseconds."""
    status, headers, answer, _ = server.ask("POST", INFER, request)
    if status != 200:
        raise SystemExit(f"{status}: {answer.decode(errors='replace')}")
    return serving.stages_of(headers.get("server-timing", ""))["total"] * 1e3


def runs(server, bodies, times):
    """A block of each plan."""
    for plan, request in bodies.items():
        times[plan] += [ask(server, request) for _ in range(BLOCK)]


def in_turns(server, bodies, times):
    """As many of each plan, one after the other."""
    for _ in range(BLOCK):
        for plan, request in bodies.items():
            times[plan].append(ask(server, request))


def percentiles(values):
    """Returns the median and the 99th percentile."""
    return statistics.median(values), statistics.quantiles(values, n=100)[98]


if __name__ == "__main__":
    main()
