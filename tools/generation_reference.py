#!/usr/bin/env python3
"""Writes what transformers makes of chats and of logits, for the tests of text generation.

OUT/chat/expected.json      chats, and the text that each template in OUT/chat makes of them
OUT/sampling/expected.json  logits, parameters, and the tokens that may be drawn with their logarithms of
                            probabilities

python3 tools/generation_reference.py --out tests/references
"""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import torch
from transformers import generation
from transformers.utils import chat_template_utils

NOW = 1_764_241_200
"""Time of the chats: 2025-11-27 11:00, UTC."""

TOKENS = {
    "smollm2": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    "qwen2": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>"},
    "features": {"bos_token": "<s>"},
}

SYSTEM = {"role": "system", "content": "You are brief.\n"}
USER = {"role": "user", "content": '  Héllo, "wörld" <b>&</b> 😀 it\'s {{ x }}\n'}
ANSWER = {"role": "assistant", "content": " Hi.\n\nThere "}
AGAIN = {"role": "user", "content": "Again?"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The weather in a city, e.g. "Zürich" <now>',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "City's name"},
                "days": {"type": "integer", "minimum": 1, "default": 3},
                "unit": {"type": "string", "enum": ["°C", "°F"]},
            },
            "required": ["city"],
        },
    },
}
SUM = {
    "type": "function",
    "function": {"name": "sum", "parameters": {"type": "object", "properties": {}}},
}

CALL: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "abcdefghi",
            "type": "function",
            "function": {
                "name": "weather",
                "arguments": {"city": "Zürich", "days": 2, "exact": True, "at": 1e-05},
            },
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": '{"now": "12 °C"}'}
THOUGHT = {"role": "assistant", "content": "<think>\nIt is a greeting.\n</think>\n\nHi."}
REASONED = {"role": "assistant", "content": "Hi.", "reasoning": "It is a greeting."}
PARTS = {
    "role": "user",
    "content": [
        {"type": "text", "text": " See "},
        {"type": "image"},
        {"type": "text", "text": "it."},
    ],
}

EXTRA = {
    "extra": {
        "b": [1, 2.5, 1e-07, 1e16, 123456789012.0, 'é\u2028\t\u007f"\\'],
        "a": {"x": None, "y": True, "z": [], "w": {}},
        "c": [[], {}, [{"k": "v"}]],
    }
}


def chats():
    """Yields names of templates, with messages and further variables."""
    for name in TOKENS:
        for messages in [
            [USER],
            [SYSTEM, USER],
            [USER, ANSWER, AGAIN],
            [SYSTEM, USER, ANSWER, AGAIN],
        ]:
            if name != "features":
                yield name, messages, {}
                yield name, messages, {"add_generation_prompt": True}
    for name in ["qwen2", "llama3", "mistral"]:
        yield name, [USER], {"tools": [WEATHER, SUM], "add_generation_prompt": True}
        yield (
            name,
            [SYSTEM, USER, CALL, RESULT],
            {"tools": [WEATHER], "add_generation_prompt": True},
        )
        yield name, [USER, CALL, RESULT, ANSWER], {"tools": [WEATHER]}
    yield "qwen2", [USER, CALL, RESULT, RESULT, ANSWER, AGAIN], {}
    yield "llama3", [USER], {"tools": [WEATHER, SUM], "tools_in_user_message": False}
    yield "llama3", [USER], {"date_string": "1 Jan 2000"}
    yield "llama3", [USER, {**CALL, "tool_calls": CALL["tool_calls"] * 2}], {}
    yield "qwen3", [USER, THOUGHT], {}
    yield "qwen3", [USER, REASONED], {}
    yield "qwen3", [USER, THOUGHT, AGAIN], {"add_generation_prompt": True}
    yield "qwen3", [USER], {"add_generation_prompt": True, "enable_thinking": False}
    yield "gemma", [PARTS, ANSWER, AGAIN], {"add_generation_prompt": True}
    yield "gemma", [USER, USER], {}
    yield "mistral", [USER, USER], {}
    yield "features", [{**USER, "role": "skip"}, USER, ANSWER, AGAIN, AGAIN], EXTRA


class Clock(datetime.datetime):
    """Clock that stands still."""

    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW, datetime.UTC)


def rendered(name, source, messages, extra):
    """Returns a case with the text, or the error that the template raises."""
    case = {
        "template": name,
        "tokens": TOKENS[name],
        "now": NOW,
        "messages": messages,
        "variables": extra,
    }
    messages = chat_template_utils._normalize_chat_messages(messages)
    variables = {"add_generation_prompt": False, **TOKENS[name], **extra}
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            [messages], chat_template=source, **variables
        )
    except Exception as error:
        return {**case, "error": str(error)}
    return {**case, "text": texts[0]}


def write_chats(out):
    chat_template_utils.datetime = Clock
    cases = [
        rendered(name, (out / f"{name}.jinja").read_text(), messages, extra)
        for name, messages, extra in chats()
    ]
    write(out / "expected.json", cases)


SAMPLING = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.5, "top_k": 5},
    {"top_k": 1},
    {"top_p": 0.5},
    {"top_p": 0.9, "temperature": 0.8},
    {"top_k": 20, "top_p": 0.6, "temperature": 1.3},
    {"min_p": 0.2},
    {"min_p": 0.05, "top_p": 0.95, "temperature": 1.1},
    {"typical_p": 0.3},
    {"typical_p": 0.9, "temperature": 0.6},
    {"top_k": 30, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.8, "temperature": 1.2},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "temperature": 0.9, "top_p": 0.9},
]
"""Parameters of sampling, under transformers' names."""


def processors(parameters):
    """Returns transformers' processors of logits, in its order."""
    made = []
    if "repetition_penalty" in parameters:
        made.append(generation.RepetitionPenaltyLogitsProcessor(parameters["repetition_penalty"]))
    for name, kind in [
        ("temperature", generation.TemperatureLogitsWarper),
        ("top_k", generation.TopKLogitsWarper),
        ("top_p", generation.TopPLogitsWarper),
        ("min_p", generation.MinPLogitsWarper),
        ("typical_p", generation.TypicalLogitsWarper),
    ]:
        if name in parameters:
            made.append(kind(parameters[name]))
    return generation.LogitsProcessorList(made)


def write_samples(out):
    torch.manual_seed(0)
    cases = []
    for scale in [1.0, 4.0]:
        for parameters in SAMPLING:
            logits = (torch.randn(1, 64) * scale * 10_000).round() / 10_000
            assert logits.unique().numel() == 64, "equal logits have no order"
            history = torch.randint(0, 64, (1, 12))
            raw = torch.log_softmax(logits, -1)[0]
            scores = torch.log_softmax(processors(parameters)(history, logits.clone()), -1)[0]
            kept = torch.isfinite(scores).nonzero()[:, 0].tolist()
            cases.append(
                {
                    "parameters": parameters,
                    "logits": [round(logit, 4) for logit in logits[0].tolist()],
                    "history": history[0].tolist(),
                    "kept": kept,
                    "log_probabilities": [round(scores[token].item(), 6) for token in kept],
                    "raw_log_probabilities": [round(raw[token].item(), 6) for token in kept],
                }
            )
    write(out / "expected.json", cases)


def write(path, cases):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    path.write_text(f"[\n{lines}\n]\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    write_chats(out / "chat")
    write_samples(out / "sampling")


if __name__ == "__main__":
    main()
