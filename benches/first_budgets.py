#!/usr/bin/env python3
"""Measures whether the first budgets after a start are kept, beside a raw ONNX Runtime session.

    make budgets

One client asks a server that has just become ready, each time with a random budget: 40 requests, and
after the next start 600, five times each. After each request a raw session runs the full plan on the
same text, in this process. A request does not count where the raw session took over 1.5 times its
median beside it, since something else ran then. The raw session's time, predicted by its own median
of the last minute, says how well any prediction can do. Needs benches/requirements.txt.
"""

import argparse
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy
import onnxruntime
import serving

TEXT = " ".join(["The quick brown fox reads the letters of last summer."] * 6)
BUDGETS_MS = (2, 66)
COUNTS = (40, 600)
MOST_DISTURBED = 1.5
MINUTE = 60.0
# The server's threads spin as well.
PAUSE = 0.01


class Raw:
    """The full plan in a raw session, with its times."""

    def __init__(self, options, tokens):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "full.onnx"
            command = serving.command_of(options, "export")
            plan = ["--family", "text", "--plan", serving.REFERENCE_PLAN, "-o", str(path)]
            subprocess.run(command + plan, check=True, cwd=serving.ROOT, capture_output=True)
            settings = onnxruntime.SessionOptions()
            # Threads that spin after a run would take the processor from the server.
            settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
            self.session = onnxruntime.InferenceSession(str(path), settings)
        ids = numpy.arange(1000, 1000 + tokens, dtype=numpy.int64)[None]
        given = {"input_ids": ids, "attention_mask": numpy.ones_like(ids)}
        names = {port.name for port in self.session.get_inputs()}
        self.inputs = {name: value for name, value in given.items() if name in names}
        self.times = []
        for _ in range(20):
            self.run()

    def run(self):
        """Runs it once; returns its time and the median of the last minute before it, in ms."""
        start = time.perf_counter()
        self.session.run(None, self.inputs)
        end = time.perf_counter()
        recent = [took for at, took in self.times if at > end - MINUTE]
        took = (end - start) * 1e3
        self.times.append((end, took))
        return took, statistics.median(recent) if recent else took


def rounds(options, count, chance):
    """Asks a server that has just started `count` times; returns a line of results."""
    late, late_there, errors, raw_errors, excluded = 0, 0, [], [], 0
    with serving.served(options, loaded=False) as server:
        draws = [chance.uniform(*BUDGETS_MS) for _ in range(count)]
        answers = []
        for budget in draws:
            status, answer, _, took = server.infer(TEXT, latency_budget_ms=budget)
            time.sleep(PAUSE)
            answers.append((budget, status, answer, took, *options.raw.run()))
            time.sleep(PAUSE)
    for budget, status, answer, took, raw, usual in answers:
        if raw > MOST_DISTURBED * usual:
            excluded += 1
            continue
        raw_errors.append(abs(usual - raw) / raw)
        if status == 200:
            predicted = answer["parameters"]["predicted_latency_ms"]
            own = answer["parameters"]["latency_ms"]
            errors.append(abs(predicted - own) / own)
            late += own > budget
            late_there += took > budget
    worst = max(0.10, serving.percentile(raw_errors, 95) + 0.05)
    statuses = [status for _, status, *_ in answers]
    return (
        f"| {count} | {serving.counts_of(statuses)} "
        f"| {late / max(1, len(errors)):.1%} | {late_there / max(1, len(errors)):.1%} "
        f"| {serving.percentile(errors, 95):.3f} "
        f"| {worst:.3f} | {excluded / count:.1%} |"
    )


def main():
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--binary", type=Path, default=serving.ROOT / "target/release/tessera")
    parser.add_argument("--pool", type=Path, default=serving.ROOT / "models")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/tessera")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with serving.served(options) as server:
        tokens = serving.num_tokens(server, TEXT)
    options.raw, chance = Raw(options, tokens), random.Random(options.seed)
    print("| requests | answers | late | late with the client | p95 error | may be | excluded |")
    print("|---|---|---|---|---|---|---|")
    for count in COUNTS:
        for _ in range(options.rounds):
            print(rounds(options, count, chance), flush=True)


if __name__ == "__main__":
    main()
