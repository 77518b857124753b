#!/usr/bin/env python3
"""Checks that answers keep the JSON schemas that they were asked to keep.

    make generation-cases

Asks for random schemas with random prompts, eight at once, with temperature 1 and fixed seeds, as
chats, completions, whole and streamed. Each answer ends with `length`, or is JSON that `jsonschema`
finds valid. Names that a schema leaves open may stand twice; those answers are counted. Prints the
number of answers by their end, and schemas whose answers are wrong, with the numbers by which they
can be asked for again (--first). Needs tests/conformance/requirements.txt.
"""

import argparse
import collections
import concurrent.futures
import http.client
import json
import random
import sys
from pathlib import Path

import jsonschema

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from case import CACHE, ROOT, Wrong, eventually, main
from support import Served

MAX_TOKENS = 200
MAX_DEPTH = 3
MAX_TOLD = 5
PATIENCE = 600
NAMES = [
    "name",
    "age",
    "a b",
    "größe",
    "items",
    "x",
    "to",
    "price_eur",
    "is-open",
    "type",
    "🙂",
    "id",
]
PATTERNS = ["^[a-z]{2,5}$", "^\\d{3}-\\d{4}$", "^(yes|no|maybe)$", "^[A-Z][a-z]+( [A-Z][a-z]+)?$"]
FORMATS = ["date", "uuid", "ipv4", "time", "email"]
PROMPTS = [
    "Describe a person as JSON.",
    "Fill in the form.",
    "What does the shop sell?",
    "Invent something.",
    "Beschreibe ein Haus.",
    'Say {"a": [1, 2',
    "a",
    "Answer in XML, never in JSON.",
]


class Maker:
    """Random schemas."""

    def __init__(self, chance):
        self.chance = chance

    def schema(self):
        """Returns a whole schema, most often of an object."""
        whole = self.object(0) if self.chance.random() < 0.7 else self.any(0)
        if self.chance.random() < 0.15:
            whole = {
                "type": "object",
                "properties": {"first": {"$ref": "#/$defs/part"}, "second": whole},
                "required": ["first"],
                "additionalProperties": False,
                "$defs": {"part": self.any(1)},
            }
        return whole

    def any(self, depth):
        """Returns the schema of a value; deep down it has no parts."""
        flat = [self.string, self.integer, self.number, self.enum, self.const, self.plain]
        nested = [self.object, self.array, self.any_of]
        return self.chance.choice(flat + (nested if depth < MAX_DEPTH else []))(depth)

    def object(self, depth):
        names = self.chance.sample(NAMES, self.chance.randint(1, 4))
        parts = {name: self.any(depth + 1) for name in names}
        schema: dict[str, object] = {"type": "object", "properties": parts}
        schema["required"] = [name for name in names if self.chance.random() < 0.6]
        if self.chance.random() < 0.8:
            schema["additionalProperties"] = False
        elif self.chance.random() < 0.5:
            schema["additionalProperties"] = self.any(MAX_DEPTH)
        return schema

    def array(self, depth):
        schema = {"type": "array", "items": self.any(depth + 1)}
        least = self.chance.randint(0, 2)
        if self.chance.random() < 0.5:
            schema["minItems"] = least
        if self.chance.random() < 0.7:
            schema["maxItems"] = least + self.chance.randint(0, 3)
        return schema

    def any_of(self, depth):
        return {"anyOf": [self.any(depth + 1) for _ in range(self.chance.randint(1, 3))]}

    def string(self, _):
        schema = {"type": "string"}
        kind = self.chance.random()
        if kind < 0.3:
            schema["pattern"] = self.chance.choice(PATTERNS)
        elif kind < 0.45:
            schema["format"] = self.chance.choice(FORMATS)
        elif kind < 0.9:
            schema["minLength"] = self.chance.randint(0, 4)
            schema["maxLength"] = schema["minLength"] + self.chance.randint(0, 20)
        return schema

    def integer(self, _):
        schema = {"type": "integer"}
        least = self.chance.randint(-(10**4), 10**4)
        if self.chance.random() < 0.7:
            schema[self.chance.choice(["minimum", "exclusiveMinimum"])] = least
        if self.chance.random() < 0.7:
            most = least + self.chance.choice([2, 10, 10**3, 10**6])
            schema[self.chance.choice(["maximum", "exclusiveMaximum"])] = most
        return schema

    def number(self, _):
        schema = {"type": "number"}
        least = round(self.chance.uniform(-100, 100), self.chance.randint(0, 3))
        if self.chance.random() < 0.7:
            schema["minimum"] = least
        if self.chance.random() < 0.7:
            schema["maximum"] = round(least + self.chance.uniform(0.1, 1000), 2)
        return schema

    def enum(self, _):
        values = ["red", "green", "", 'a "b"', "größe", 0, -1, 2.5, True, None, [1, 2], {"a": 1}]
        return {"enum": self.chance.sample(values, self.chance.randint(1, 5))}

    def const(self, _):
        return {"const": self.chance.choice(["fixed", 7, None, False, "line\nline", [], {"b": []}])}

    def plain(self, _):
        return {
            "type": self.chance.choice(
                ["boolean", "null", ["string", "null"], ["integer", "boolean"]]
            )
        }


class Question:
    """One schema, and the request for an answer that keeps it."""

    def __init__(self, seed, number):
        chance = random.Random(f"{seed} {number}")
        self.number, self.schema, self.has_twins = number, Maker(chance).schema(), False
        jsonschema.Draft202012Validator.check_schema(self.schema)
        prompt = chance.choice(PROMPTS) + chance.choice(["", " Be short.", " Think first."])
        self.body = {"model": "chat", "temperature": 1, "seed": number, "max_tokens": MAX_TOKENS}
        self.is_chat = chance.random() < 0.7
        self.body["stream"] = chance.random() < 0.3
        if self.is_chat:
            form = {"name": "form", "schema": self.schema}
            self.body["messages"] = [{"role": "user", "content": prompt}]
            self.body["response_format"] = {"type": "json_schema", "json_schema": form}
        else:
            self.body["prompt"], self.body["guided_json"] = prompt, self.schema

    def ask(self, server):
        """Returns the end of the answer, or what is wrong with it, and its number of tokens."""
        path = "/v1/chat/completions" if self.is_chat else "/v1/completions"
        connection = http.client.HTTPConnection(server.http_address, timeout=PATIENCE)
        try:
            connection.request("POST", path, json.dumps(self.body))
            response = connection.getresponse()
            content = response.read().decode()
        finally:
            connection.close()
        if response.status != 200:
            return f"status {response.status}: {content}"
        events = [json.loads(content)] if not self.body["stream"] else events_of(content)
        choices = [choice for event in events for choice in event.get("choices", [])]
        text = "".join(self.text_of(choice) for choice in choices)
        reason = choices[-1]["finish_reason"] if choices else None
        if reason == "length":
            return reason
        if reason != "stop":
            return f"ends with {reason}: {events[-1]}"
        return self.fault(text) or reason

    def text_of(self, choice):
        """Returns the text of a choice or of its piece."""
        if not self.is_chat:
            return choice["text"]
        return choice.get("message", choice.get("delta")).get("content") or ""

    def object(self, pairs):
        """Returns the object of an answer, and notes whether a name stands in it twice."""
        self.has_twins |= len(dict(pairs)) < len(pairs)
        return dict(pairs)

    def fault(self, text):
        """Returns what is wrong with a whole answer; None if it keeps the schema."""
        try:
            value = json.loads(text, object_pairs_hook=self.object, parse_constant=no_constant)
        except ValueError as error:
            return f"no JSON ({error}): {text!r}"
        validator = jsonschema.Draft202012Validator(
            self.schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
        )
        found = jsonschema.exceptions.best_match(validator.iter_errors(value))
        return found and f"not valid ({found.message}): {text!r}"


def events_of(content):
    """Returns the events of a stream, which ends with `[DONE]`."""
    lines = [line[6:] for line in content.splitlines() if line.startswith("data: ")]
    if not lines or lines[-1] != "[DONE]":
        return [{"stream without an end": content[-300:]}]
    return [json.loads(line) for line in lines[:-1]]


def no_constant(name):
    """Refuses what is no JSON though Python reads it."""
    raise ValueError(f"{name} is no JSON")


def num_open(server):
    """Returns the number of sequences that run or wait."""
    metrics = server.metrics()
    states = ("running", "waiting")
    return sum(metrics.total(f"tessera_generation_sequences_{state}") for state in states)


def schemas():
    """Runs the case; returns its line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--in-flight", type=int, default=8)
    parser.add_argument("--first", type=int, default=0, help="number of the first schema")
    options = parser.parse_args()
    numbers = range(options.first, options.first + options.count)
    questions = [Question(options.seed, number) for number in numbers]
    family = {"chat": ROOT / "models/chat"}
    settings = ("--no-grpc", "--cache", CACHE, "--request-timeout", PATIENCE)
    with (
        Served(family, *settings) as server,
        concurrent.futures.ThreadPoolExecutor(options.in_flight) as pool,
    ):
        ends = list(pool.map(lambda question: question.ask(server), questions))
        eventually(lambda: num_open(server) == 0)
        tokens = server.metric("tessera_generation_generated_tokens_total")
    counts = collections.Counter(end if end in ("stop", "length") else "wrong" for end in ends)
    faults = [
        f"{question.number}: {json.dumps(question.schema)}: {end}"
        for question, end in zip(questions, ends, strict=True)
        if end not in ("stop", "length")
    ]
    print("\n".join(faults[:MAX_TOLD]), end="\n" if faults else "")
    if faults:
        raise Wrong(str(dict(counts)))
    twins = sum(question.has_twins for question in questions)
    return f"{dict(counts)}, {tokens:.0f} tokens; {twins} have a name twice, of those left open"


if __name__ == "__main__":
    main(schemas)
