#!/usr/bin/env python3
"""Checks that clients that come and go as they like leave nothing behind, and starve nobody.

    make generation-cases

For ten minutes 32 clients each ask, again and again, for one of 24 streams, with a random priority.
They read it as it comes, read it slowly, leave in the middle, stop reading for a while and then leave,
or leave before the first token, or before the request is whole. At the end

- each answer that was read whole had the same text whenever it was asked for,
- at most 100 first tokens came before one of a request that had come before theirs, with the same
  or a lower priority: nobody is starved, however slow the machine is at the time,
- no sequence runs or waits, and caches hold no more than what beginnings of prompts are kept for,
- the process holds what it held after two minutes (a fifth of a shorter run) beside the caches of
  the moment, within a tenth.

Prints these numbers. Needs no package.
"""

import argparse
import collections
import http.client
import json
import random
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from case import CACHE, ROOT, WORDS, Wrong, ask, eventually, main
from support import Served

NUM_PROMPTS = 24
# Number of those that are asked alone first.
NUM_ALONE = 6
# Lengths of prompts in words, and of answers in tokens.
WORD_COUNTS = (5, 10, 20, 60, 200)
TOKEN_COUNTS = (8, 16, 32, 64)
# A lower number goes first; 100 is that of a request that says nothing.
PRIORITIES = (1, 100, 100, 100, 200)
BEHAVIOURS = ("stays", "stays", "slow", "leaves", "stops", "early", "half")
PATIENCE = 300
MOST_OVERTAKEN = 100
MOST_GROWTH = 1.1
WARM_SECONDS = 120
# The server keeps the caches of so many prompts, in chunks of so many tokens.
NUM_KEPT, CHUNK = 16, 64


class Question:
    """A request that always gives the same text."""

    def __init__(self, number):
        chance = random.Random(number)
        # Some prompts begin in the same way.
        shared = ["Please", "read", "this"] * 30 if number % 4 == 0 else [str(number)]
        words = chance.choices(WORDS, k=chance.choice(WORD_COUNTS))
        self.number = number
        self.body = {
            "model": "chat",
            "messages": [{"role": "user", "content": " ".join(shared + words)}],
            "max_tokens": chance.choice(TOKEN_COUNTS),
            "temperature": 0.8,
            "seed": number,
            "stream": True,
            "ignore_eos": True,
        }

    def length(self, server):
        """Returns the number of tokens of the prompt, and a few more for what stands around it."""
        content = self.body["messages"][0]["content"]
        return ask(server, "/tokenize", {"model": "chat", "prompt": content})[1]["count"] + CHUNK


class First(NamedTuple):
    """The first token of a request."""

    priority: int
    # Times of the request and of the token.
    asked: float
    came: float

    def wait(self):
        """Returns the time from the request to the token."""
        return self.came - self.asked

    def overtaken(self, others):
        """Returns how many requests came later and had a token before, without a higher priority."""
        return sum(
            other.asked > self.asked and other.came < self.came and other.priority >= self.priority
            for other in others
        )


class Crowd:
    """Clients, and what they saw."""

    def __init__(self, server, questions):
        self.server, self.questions, self.end = server, questions, 0.0
        self.lock = threading.Lock()
        self.texts = {}
        self.firsts = []
        self.counts = collections.Counter()
        self.faults = []

    def ask_alone(self):
        """Asks some questions alone; returns the most bytes of the caches that the server keeps."""
        length, self.texts[0] = answer_whole(self.server, self.questions[0])
        eventually(lambda: num_open(self.server) == 0)
        bytes_a_token = cache_bytes(self.server) / (length // CHUNK * CHUNK)
        for question in self.questions[1:NUM_ALONE]:
            _, self.texts[question.number] = answer_whole(self.server, question)
        lengths = [question.length(self.server) for question in self.questions]
        return NUM_KEPT * max(lengths) * bytes_a_token

    def gather(self, num_clients, seconds):
        """Has clients ask for some time; returns the memory by time."""
        self.end = time.monotonic() + seconds
        threads = [threading.Thread(target=self.live, args=(n,)) for n in range(num_clients)]
        for thread in threads:
            thread.start()
        samples = memory_over(self.server, seconds)
        for thread in threads:
            thread.join()
        return samples

    def live(self, number):
        """Asks until the time is over."""
        chance = random.Random(f"client {number}")
        while time.monotonic() < self.end:
            behaviour = chance.choice(BEHAVIOURS)
            question, priority = chance.choice(self.questions), chance.choice(PRIORITIES)
            try:
                text = self.ask(behaviour, question, priority, chance)
            except Exception as error:
                self.note(fault=f"{behaviour}, prompt {question.number}: {error!r}")
                return
            self.note(behaviour, question, text)
            time.sleep(chance.uniform(0, 0.5))

    def note(self, behaviour="fault", question=None, text=None, fault=None):
        """Notes what one client saw."""
        with self.lock:
            self.counts[behaviour] += 1
            if text is not None and self.texts.setdefault(question.number, text) != text:
                known = self.texts[question.number]
                fault = f"prompt {question.number} gives {text!r}, and before {known!r}"
            if fault:
                self.faults.append(fault)

    def ask(self, behaviour, question, priority, chance):
        """Asks once. Returns the text if it was read whole, None if the client left."""
        body = json.dumps(question.body | {"priority": priority}).encode()
        connection = http.client.HTTPConnection(self.server.http_address, timeout=PATIENCE)
        try:
            start = time.monotonic()
            if behaviour == "half":
                connection.putrequest("POST", "/v1/chat/completions")
                connection.putheader("Content-Length", str(len(body)))
                connection.endheaders(body[: len(body) // 2])
                time.sleep(chance.uniform(0, 1))
                return None
            connection.request("POST", "/v1/chat/completions", body)
            if behaviour == "early":
                time.sleep(chance.uniform(0, 1))
                return None
            response = connection.getresponse()
            if response.status != 200:
                raise Wrong(f"status {response.status}: {response.read()[:300]!r}")
            asked = First(priority, start, start)
            return self.read(behaviour, response, asked, chance)
        finally:
            connection.close()

    def read(self, behaviour, response, asked, chance):
        """Reads a stream, or a part of it; returns as `ask` does."""
        texts, reason = [], None
        most = chance.randint(1, 20)
        with response:
            for line in response:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise Wrong(str(event))
                for choice in event["choices"]:
                    reason = choice["finish_reason"] or reason
                    if text := choice["delta"].get("content"):
                        if not texts:
                            self.firsts.append(asked._replace(came=time.monotonic()))
                        texts.append(text)
                if behaviour == "slow":
                    time.sleep(chance.uniform(0, 0.1))
                elif behaviour in ("leaves", "stops") and len(texts) >= most:
                    time.sleep(chance.uniform(0, 5) if behaviour == "stops" else 0)
                    return None
        if behaviour in ("leaves", "stops"):
            return None
        if reason != "length":
            raise Wrong(f"the stream ends with {reason} after {''.join(texts)!r}")
        return "".join(texts)


def num_open(server):
    """Returns the number of sequences that run or wait."""
    metrics = server.metrics()
    states = ("running", "waiting")
    return sum(metrics.total(f"tessera_generation_sequences_{state}") for state in states)


def cache_bytes(server):
    """Returns the bytes of all caches."""
    return server.metric("tessera_generation_cache_bytes")


def answer_whole(server, question):
    """Asks alone; returns the number of tokens of the prompt and the text."""
    body = question.body | {"stream": False}
    status, answer = ask(server, "/v1/chat/completions", body)
    if status != 200:
        raise Wrong(f"prompt {question.number} alone: {status} {answer}")
    return answer["usage"]["prompt_tokens"], answer["choices"][0]["message"]["content"]


def memory_over(server, seconds):
    """Returns samples: the time, the server's resident bytes and those of its caches."""
    samples, start = [], time.monotonic()
    while time.monotonic() - start < seconds:
        resident, caches = server.memory_bytes(), cache_bytes(server)
        samples.append((time.monotonic() - start, resident, caches))
        time.sleep(1)
    return samples


def medians_between(samples, low, high):
    """Returns the medians of the samples from one time to another: of all the resident bytes, and of
    those beside the caches."""
    within = [
        (resident, resident - caches) for at, resident, caches in samples if low <= at <= high
    ]
    return [statistics.median(column) for column in zip(*within, strict=True)]


def faults_of(crowd, samples, seconds, bytes_kept):
    """Returns what is wrong, and a line of what was seen."""
    faults = crowd.faults[:5]
    if not crowd.firsts:
        return [*faults, "no token came"], str(dict(crowd.counts))
    most = max(first.overtaken(crowd.firsts) for first in crowd.firsts)
    if most > MOST_OVERTAKEN:
        faults.append(f"{most} later requests had a first token before one")
    warm, window = min(WARM_SECONDS, seconds / 5), seconds / 10
    all_before, before = medians_between(samples, warm, warm + window)
    all_after, after = medians_between(samples, seconds - window, seconds)
    if after > MOST_GROWTH * before:
        faults.append(f"the process grew from {before / 1e6:.0f} to {after / 1e6:.0f} MB")
    if (left := cache_bytes(crowd.server)) > bytes_kept:
        faults.append(f"caches hold {left:.0f} bytes, of which {bytes_kept:.0f} may be kept")
    waits = collections.defaultdict(list)
    for first in crowd.firsts:
        waits[first.priority].append(first.wait())
    by_priority = ", ".join(
        f"{priority}: {statistics.median(own):.2f}/{max(own):.2f} s of {len(own)}"
        for priority, own in sorted(waits.items())
    )
    line = (
        f"{dict(sorted(crowd.counts.items()))}; first token, median/longest by priority {by_priority} "
        f"(at most {most} overtook one); memory {all_before / 1e6:.0f} MB after {warm:.0f} "
        f"s, {all_after / 1e6:.0f} MB at the end, beside caches {before / 1e6:.0f} and "
        f"{after / 1e6:.0f} MB; caches {left / 1e6:.1f} of {bytes_kept / 1e6:.1f} MB"
    )
    return faults, line


def readers():
    """Runs the case; returns its line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=32)
    options = parser.parse_args()
    questions = [Question(number) for number in range(NUM_PROMPTS)]
    settings = ("--no-grpc", "--cache", CACHE, "--request-timeout", PATIENCE)
    with Served({"chat": ROOT / "models/chat"}, *settings) as server:
        crowd = Crowd(server, questions)
        bytes_kept = crowd.ask_alone()
        samples = crowd.gather(options.clients, options.seconds)
        eventually(lambda: num_open(server) == 0)
        faults, line = faults_of(crowd, samples, options.seconds, bytes_kept)
    if faults:
        raise Wrong("; ".join([*faults, line]))
    return line


if __name__ == "__main__":
    main(readers)
