#!/usr/bin/env python3
"""Writes how llama.cpp tokenizes texts of many kinds, for the tests of tokenizers made of GGUF keys.

Takes a GGUF file with a byte-level vocabulary, such as SmolLM2's, and tells llama-server in turn that it has each
of PRES. The vocabulary that is written has only the tokens that can occur in the texts, with ids of its own.

  python3 tools/tokens_reference.py --gguf FILE --server "DIR/run llama-server" --out tests/references/tokens
"""

import argparse
import json
import shlex
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

from gguf import GGUFReader

PRES = ["smollm", "qwen2", "llama-bpe", "gpt-2"]
PORT = 18_090
TRIES = 600

TEXTS = [
    "",
    " ",
    "  ",
    "   a",
    "a   ",
    "\n",
    "\n\n",
    "\r\n",
    "\t\tx",
    " \n \n",
    "a\n\n\nb",
    "  \n  x",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "don't you're I'll we've I'd it's THEY'RE DON'T",
    "'sample' 'tis",
    "12345",
    "3.14159",
    "1,000,000",
    "year 2024-11-27",
    "x1y22z333",
    "\u0663\u0664\u0665 \u096b\u096c\u096d \u2177 \xb2 \xbd",
    "héllo café naïve",
    "e\u0301 combining",
    "Stra\xdfe \xc4\xd6\xdc",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
    "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c\u3002\u30ab\u30bf\u30ab\u30ca",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
    "\U0001f600\U0001f603 \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd",
    "a\U0001f600b",
    "\xa0non\xa0breaking\u3000ideographic\u2003em",
    "zero\u200bwidth\u200djoin",
    "def f(x):\n    return x**2  # ok\n",
    "    four\n\tTab\n\n\n  two",
    "https://example.com/?q=a&b=%20#frag",
    "a_b-c.d/e\\f|g",
    "{}[]()<>\"'`~!@#$%^&*",
    "<|im_start|>user\nHi<|im_end|>\n",
    "text <|endoftext|> more",
    "<|im_end|",
    "<|im_start|><|im_start|>",
    "camelCaseSNAKE_caseURLParser",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "         nine",
    "x\x00y",
    "\ufeffbom",
    "\ud7ff\ue000\ufffd",
    "1 2  3   4",
    "\u2026\u2014\u2013\u201c\u201d\u2018\u2019",
    "\u2211\u222b\u221a\u221e\u2260\u2264",
    "\ufb01 ligature \u216b \u338f",
    "\u2028line\u2029para\x85next",
    "I  am   here\n\n\n\nok \n",
    "a'b 'S 'LL",
    "\r\r\n\n\r",
    "a a a \u1e9e\u0130 \uff21\uff22\uff23 \uff41\uff42\uff43 \U0001d4b3\U0001d4ce \u0967\u0968\u0969 12a34 5,6",
]


def byte_characters():
    """Returns GPT-2's character of each byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {
        byte: chr(256 + place) for place, byte in enumerate(others)
    }


def ask(path, content=None):
    """Returns what the server answers."""
    body = None if content is None else json.dumps(content).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", body) as answer:
        return json.load(answer)


def wait():
    for _ in range(TRIES):
        try:
            return ask("/health")
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server does not start")


def tokens_of(server, file, is_special):
    """Returns the ids of all texts."""
    command = [
        *shlex.split(server),
        "-m",
        str(file),
        "--port",
        str(PORT),
        "-c",
        "256",
        "-np",
        "1",
        "--no-warmup",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait()
            content = [
                {"content": text, "add_special": False, "parse_special": is_special}
                for text in TEXTS
            ]
            return [ask("/tokenize", one)["tokens"] for one in content]
        finally:
            process.terminate()


def vocabulary(reader):
    """Returns the tokens that can occur in the texts, as (old id, token, kind), and the pairs that make them."""
    characters = byte_characters()
    written = ["".join(characters[byte] for byte in text.encode()) for text in TEXTS]
    field = {
        name: reader.fields[f"tokenizer.ggml.{name}"].contents()
        for name in ["tokens", "token_type", "merges"]
    }

    def is_kept(token, kind):
        return kind != 1 or len(token) == 1 or any(token in text for text in written)

    tokens = [
        (place, token, kind)
        for place, (token, kind) in enumerate(
            zip(field["tokens"], field["token_type"], strict=True)
        )
        if is_kept(token, kind)
    ]
    names = {token for _, token, _ in tokens}
    merges = [merge for merge in field["merges"] if merge.replace(" ", "", 1) in names]
    return tokens, [merge for merge in merges if all(part in names for part in merge.split(" ", 1))]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--server", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    tokens, merges = vocabulary(GGUFReader(given.gguf))
    new = {old: place for place, (old, _, _) in enumerate(tokens)}
    rows: list[dict[str, object]] = [{"text": text} for text in TEXTS]
    with tempfile.TemporaryDirectory() as folder:
        for pre in PRES:
            file = Path(folder) / "named.gguf"
            command = [
                "gguf-new-metadata",
                "--force",
                "--pre-tokenizer",
                pre,
                str(given.gguf),
                str(file),
            ]
            subprocess.run(command, check=True, capture_output=True)
            for row, ids in zip(rows, tokens_of(given.server, file, True), strict=True):
                row[pre] = [new[token] for token in ids]
        for row, ids in zip(rows, tokens_of(given.server, given.gguf, False), strict=True):
            row["as_text"] = [new[token] for token in ids]
    given.out.mkdir(parents=True, exist_ok=True)
    kept = {
        "tokens": [token for _, token, _ in tokens],
        "kinds": [kind for _, _, kind in tokens],
        "merges": merges,
    }
    kept["ids"] = [old for old, _, _ in tokens]
    (given.out / "vocabulary.json").write_text(
        json.dumps(kept, ensure_ascii=False, separators=(",", ":")) + "\n"
    )
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    (given.out / "expected.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
