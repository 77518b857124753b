#!/usr/bin/env python3
"""Measures text generation beside llama.cpp's server, on the same file and number of threads.

    make bench-generation ARGS="--peer '/opt/llama.cpp/llama-server'"

Both servers run all the time, and the rounds alternate (first one server, then the other twice, then
the first again). Only one of them works at a time. Every request is a stream over HTTP of one
completion, with greedy decoding and `ignore_eos`. Prompts differ in their first word, so that no cache
helps where none is asked for. Prints the median of each measure, and the median and the 95 % interval
of the ratio of neighbouring runs. Needs no package.
"""

import argparse
import concurrent.futures
import contextlib
import json
import random
import shlex
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support import ROOT, Served, eventually, free_port

FILE = ROOT / "models/chat/anchors/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
]
PATIENCE = 60


class Side:
    """A running server, and how it is asked."""

    def __init__(self, name, address):
        self.name, self.url = name, f"http://{address}"

    def answers(self):
        """Tells whether the server answers a completion yet."""
        with contextlib.suppress(OSError):
            self.ask("hello", 1)
            return True
        return False

    def ask(self, prompt, tokens, cached=False):
        """Streams a completion; returns the times of the request, its first and last token, in s."""
        body = {
            "model": "chat",
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "ignore_eos": True,
        }
        if self.name == "peer":
            body["cache_prompt"] = cached
        request = urllib.request.Request(
            f"{self.url}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        start, times = time.perf_counter(), []
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            for line in answer:
                if line.startswith(b"data: {") and json.loads(line[6:]).get("choices"):
                    times.append(time.perf_counter())
        return start, times[0], times[-1]

    def count(self, prompt):
        """Returns the number of tokens of a prompt."""
        key = "content" if self.name == "peer" else "prompt"
        body = {"model": "chat", key: prompt}
        request = urllib.request.Request(
            f"{self.url}/tokenize", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return len(json.load(urllib.request.urlopen(request, timeout=PATIENCE))["tokens"])


def prompt_of(words, chance):
    """Returns a prompt of so many words, that no other begins like."""
    return " ".join([str(chance.randrange(10**9)), *chance.choices(WORDS, k=words)])


def decode(side, chance):
    """Milliseconds for each token after the first of 64, behind a short prompt."""
    _, first, last = side.ask(prompt_of(20, chance), 64)
    return (last - first) / 63 * 1e3


def prefill(side, chance):
    """Milliseconds until the first token of a prompt of about 500 tokens."""
    start, first, _ = side.ask(prompt_of(480, chance), 1)
    return (first - start) * 1e3


def streams(side, chance):
    """Milliseconds for each token of eight streams of 32 tokens together."""
    prompts = [prompt_of(20, chance) for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        start = time.perf_counter()
        list(pool.map(lambda prompt: side.ask(prompt, 32), prompts))
    return (time.perf_counter() - start) / (8 * 32) * 1e3


def prefix(side, chance):
    """First token of a prompt of about 1,000 tokens that was asked before, ÷ that of the first time."""
    prompt = prompt_of(980, chance)
    cold, warm = (side.ask(prompt + end, 1, cached=True) for end in (" a", " b"))
    return (warm[1] - warm[0]) / (cold[1] - cold[0])


MEASURES = {"decode": decode, "prefill": prefill, "streams": streams, "prefix": prefix}


def interval(values):
    """Returns the median of values and the 95 % interval of it, by resampling."""
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(2000))
    return statistics.median(values), medians[50], medians[-51]


@contextlib.contextmanager
def peer_of(options):
    """Runs llama.cpp's server."""
    port, threads = free_port(), str(options.threads)
    command = [*shlex.split(options.peer), "-m", str(options.file), "--port", str(port)]
    command += ["-t", threads, "-tb", threads, "-c", "16384", "-np", "8"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, cwd=ROOT)
    try:
        side = Side("peer", f"127.0.0.1:{port}")
        eventually(lambda: side.answers() or process.poll() is not None, PATIENCE, pause=0.1)
        yield side
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def sides_of(options):
    """Runs both servers, or ours alone without a peer."""
    threads = ("--no-grpc", "--threads", options.threads)
    with contextlib.ExitStack() as stack:
        own = Served({"chat": options.family.resolve()}, *threads, binary=options.binary)
        sides = [Side("tessera", stack.enter_context(own).http_address)]
        if options.peer:
            sides.append(stack.enter_context(peer_of(options)))
        yield sides


def measure(sides, name, rounds, chance):
    """Runs a measure in alternating rounds and prints it."""
    found = {side.name: [] for side in sides}
    for number in range(rounds):
        order = sides if number % 2 == 0 else sides[::-1]
        for side in order:
            found[side.name].append(MEASURES[name](side, chance))
    line = ", ".join(f"{key} {statistics.median(each):.3f}" for key, each in found.items())
    if len(sides) > 1:
        ratios = [peer / own for own, peer in zip(found["tessera"], found["peer"], strict=True)]
        middle, low, high = interval(ratios)
        line += f"; peer ÷ tessera {middle:.3f} [{low:.3f}, {high:.3f}]"
    print(f"{name}: {line}", flush=True)


def main():
    """Starts the servers and runs each measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/tessera")
    parser.add_argument("--family", type=Path, default=ROOT / "models/chat")
    parser.add_argument("--file", type=Path, default=FILE, help="the file that the peer serves")
    parser.add_argument("--peer", help="command of llama.cpp's server")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--measures", default=",".join(MEASURES))
    options = parser.parse_args()
    chance = random.Random(5)
    with sides_of(options) as sides:
        counts = {side.name: side.count(prompt_of(480, chance)) for side in sides}
        print(f"tokens of a prompt of 480 words: {counts}", flush=True)
        for name in options.measures.split(","):
            measure(sides, name, options.rounds, chance)


if __name__ == "__main__":
    main()
