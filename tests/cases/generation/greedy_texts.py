#!/usr/bin/env python3
"""Compares greedy texts with those of llama.cpp's server.

    llama-quantize --allow-requantize SmolLM2-135M-Instruct.Q4_1.gguf smollm2.f32.gguf F32
    make greedy-texts ARGS="--peer /opt/llama.cpp/llama-server --file smollm2.f32.gguf"

Both servers get the same token ids and continue them by up to 32 tokens, each prompt alone. Tessera runs the
values of the pool's file in f32 (its variant `f32`), the peer the file that is given, with caches in
f32; `--form blocks` runs the file's blocks instead. `--own FILE --blocks 18 --words 262144` takes another
decoder of that many blocks and token ids than the pool's, and no chats. Prints where texts part, and how far the two most
likely tokens lie apart there: under 0.001 in either server it is a tie, which rounding decides. Anything
else is wrong, with `--form f32`: two ways of rounding blocks differ by more. Needs no package.
"""

import argparse
import contextlib
import hashlib
import json
import math
import shlex
import subprocess
import sys
import tempfile
import urllib.request
from itertools import zip_longest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from case import CACHE, ROOT, Wrong, main
from support import Served, eventually, free_port

FILE = ROOT / "models/chat/anchors/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PLANS = {"f32": "a[0..{0}]{{f32:0..{0},exit:f32}}", "blocks": "a[0..{0}]"}
MANIFEST = """name = "chat"
task = "text-generation"
description = "A decoder."
license = "Its own"
reference = "a"
limits = {{ max_tokens = 2048 }}
output = {{ name = "logits", width = {words}, per_token = true, states = "last_hidden_state" }}
quality = {{ metric = "accuracy", file = "quality.json" }}
[anchors.a]
gguf = "own.gguf"
variants = ["f32"]
[anchors.a.sha256]
"own.gguf" = "{digest}"
"""
TOKENS = 32
TIE = 1e-3
PATIENCE = 300
TEXTS = [
    "The quick brown fox",
    "1, 2, 3, 4,",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "The three states of matter are",
    "Water boils at",
    "In 1969, the first",
    "Dear Sir or Madam,\n\n",
    "Ingredients:\n- 2 eggs\n- 100 g of sugar\n-",
    "SELECT name FROM users WHERE",
    "Berlin, Hamburg, München,",
    "La capitale de la France est",
    "🙂 means happy and 🙁 means",
    "A: Hello!\nB:",
    "The mitochondria is",
    # Longer than windows of attention.
    ", ".join(map(str, range(1, 251))) + ",",
]
QUESTIONS = [
    "What is the capital of France?",
    "Who wrote Hamlet?",
    "Explain gravity to a child.",
    "Write a haiku about rain.",
    "What is 12 times 12?",
    "Name five fruits.",
    "Translate 'good morning' to Spanish.",
    "Why is the sky blue?",
    "Write a Python function that reverses a list.",
    "Give me a name for a cat.",
    "What is the largest planet?",
    "How do I make tea?",
    "Summarize: The dog ran over the field, and the cat watched it from the wall.",
    "Is a tomato a fruit?",
    "Tell me a joke.",
]
CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)


class Step:
    """One token of an answer: its text, and the most likely ones with their log-probabilities."""

    def __init__(self, text, top=()):
        self.text, self.top = text, sorted(top, key=lambda one: -one[1])

    def __str__(self):
        second = f", {self.gap():.5f} before {self.top[1][0]!r}" if len(self.top) > 1 else ""
        return f"{self.text!r}{second}"

    def gap(self):
        """Returns how far the two most likely tokens lie apart; infinity if that was not told."""
        return self.top[0][1] - self.top[1][1] if len(self.top) > 1 else math.inf


def post(address, path, body):
    """Returns the answer to a request."""
    request = urllib.request.Request(
        f"http://{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


class Own:
    """Tessera."""

    def __init__(self, address, plan):
        self.address, self.plan = address, plan

    def tokens(self, text):
        body = {"model": "chat", "prompt": text, "add_special_tokens": True}
        return post(self.address, "/tokenize", body)["tokens"]

    def text(self, token):
        """Returns the text of a token."""
        return post(self.address, "/detokenize", {"model": "chat", "tokens": [token]})["prompt"]

    def steps(self, tokens):
        body = {"model": "chat", "prompt": tokens, "max_tokens": TOKENS, "temperature": 0}
        body |= {"logprobs": 2, "plan": self.plan}
        told = post(self.address, "/v1/completions", body)["choices"][0]["logprobs"]
        pairs = zip(told["tokens"], told["top_logprobs"], strict=True)
        return [Step(text, top.items()) for text, top in pairs]


class Peer:
    """llama.cpp's server."""

    def __init__(self, address, text):
        """Knows the server at `address`; `text` returns the text of a token."""
        self.address, self.text = address, text

    def answers(self):
        """Returns whether the server has loaded its file."""
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"http://{self.address}/health").status == 200
        return False

    def tokens(self, text):
        body = {"content": text, "add_special": True, "parse_special": True}
        return post(self.address, "/tokenize", body)["tokens"]

    def steps(self, tokens):
        body = {"prompt": tokens, "n_predict": TOKENS, "temperature": 0, "n_probs": 2}
        body |= {"cache_prompt": False, "return_tokens": True}
        answer = post(self.address, "/completion", body)
        # The token that ends an answer is no part of it.
        tokens = answer["tokens"][:-1] if answer["stop_type"] == "eos" else answer["tokens"]
        texts = [self.text(token) for token in tokens]
        told = answer["completion_probabilities"]
        # Those of a part of a character are left out.
        if len(told) < len(texts):
            return [Step(text) for text in texts]
        tops = [[(text_of(top), top["logprob"]) for top in one["top_logprobs"]] for one in told]
        return [Step(*pair) for pair in zip(texts, tops, strict=False)]


def text_of(token):
    """Returns the text of one of the peer's tokens."""
    return bytes(token["bytes"]).decode(errors="replace")


@contextlib.contextmanager
def own_of(options):
    """Runs Tessera over a family of the file with the variant `f32`."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "own.gguf").symlink_to(options.own.resolve())
        digest = hashlib.sha256(options.own.read_bytes()).hexdigest()
        manifest = MANIFEST.format(words=options.words, digest=digest)
        (Path(folder) / "family.toml").write_text(manifest)
        settings = ("--no-grpc", "--cache", CACHE, "--request-timeout", PATIENCE)
        with Served({"chat": Path(folder)}, *settings, "--threads", options.threads) as server:
            yield Own(server.http_address, PLANS[options.form].format(options.blocks))


@contextlib.contextmanager
def peer_of(options, own):
    """Runs llama.cpp's server."""
    port, threads = free_port(), str(options.threads)
    command = [*shlex.split(options.peer), "-m", str(options.file), "--port", str(port)]
    command += ["-t", threads, "-tb", threads, "-c", "2048", "-np", "1"]
    command += ["-fa", "off", "-ctk", "f32", "-ctv", "f32"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, cwd=ROOT)
    try:
        peer = Peer(f"127.0.0.1:{port}", own.text)
        eventually(lambda: peer.answers() or process.poll() is not None, PATIENCE, pause=0.1)
        if process.poll() is not None:
            raise Wrong(f"the peer has ended with {process.returncode}: {shlex.join(command)}")
        yield peer
    finally:
        process.terminate()
        process.wait()


def compare(own, peer, prompt):
    """Compares one prompt; returns where the texts part, if they do, and the largest difference of
    the log-probability of a token before that."""
    tokens = own.tokens(prompt)
    if (theirs := peer.tokens(prompt)) != tokens:
        raise Wrong(f"{prompt!r} has the tokens {tokens} here and {theirs} there")
    sides = own.steps(tokens), peer.steps(tokens)
    worst = 0.0
    for index, (mine, other) in enumerate(zip_longest(*sides, fillvalue=Step("the end"))):
        if mine.text != other.text:
            return (index, mine, other), worst
        if other.top:
            worst = max(worst, abs(mine.top[0][1] - other.top[0][1]))
    return None, worst


def greedy_texts():
    """Runs the case; returns its line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", required=True, help="command of llama.cpp's server")
    parser.add_argument("--file", type=Path, default=FILE, help="the file that the peer serves")
    parser.add_argument("--own", type=Path, default=FILE, help="the file that Tessera serves")
    parser.add_argument("--blocks", type=int, default=30, help="number of its blocks")
    parser.add_argument("--words", type=int, default=49_152, help="number of its token ids")
    parser.add_argument("--form", choices=PLANS, default="f32", help="how Tessera runs its file")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    prompts = TEXTS if options.own != FILE else [*TEXTS, *map(CHAT.format, QUESTIONS)]
    num_ties, num_apart, worst = 0, 0, 0.0
    with own_of(options) as own, peer_of(options, own) as peer:
        for number, prompt in enumerate(prompts):
            parting, difference = compare(own, peer, prompt)
            worst = max(worst, difference)
            if parting is None:
                continue
            index, mine, other = parting
            is_tie = min(mine.gap(), other.gap()) < TIE
            num_ties, num_apart = num_ties + is_tie, num_apart + (not is_tie)
            print(
                f"prompt {number} parts at token {index}: {mine} here, {other} there"
                f"{', a tie' if is_tie else ''}",
                flush=True,
            )
    line = (
        f"{len(prompts) - num_ties - num_apart} of {len(prompts)} texts of up to {TOKENS} tokens are equal, "
        f"{num_ties} part at a tie, {num_apart} elsewhere; log-probabilities of the same tokens "
        f"differ by {worst:.1e} at most"
    )
    if num_apart and options.form == "f32":
        raise Wrong(line)
    return line


if __name__ == "__main__":
    main(greedy_texts)
