#!/usr/bin/env python3
"""Writes texts of kinds on which nothing of the `text` family is trained or fitted.

    python3 tools/heldout.py --from .tessera/data/texts --to .tessera/data/heldout

Quotations (Debian's fortunes), entries of a dictionary (GCIDE), docstrings of Python (SymPy), and
questions with their answers (Debian's FAQ). A line is `{"id", "text"}`, that of a question has the
id of its `answer` as well. Which texts are taken depends on their digests alone.
"""

import argparse
import ast
import gzip
import hashlib
import html.parser
import json
import re
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "train"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import setup
from place import place

COUNT = 1_000
MIN_CHARACTERS, MAX_CHARACTERS = 30, 1_200
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def quotations(folder):
    """Yields the sayings of fortunes."""
    for member, content in setup.members(folder / "fortunes.deb"):
        name = Path(member).name
        if (
            "/games/fortunes/" in member
            and not name.endswith((".dat", ".u8"))
            and "art" not in name
        ):
            yield from content.decode("utf-8", "replace").split("\n%\n")


def dictionary(folder):
    """Yields the entries of GCIDE, whose index has their places in digits of base 64."""
    found = {
        Path(member).name: content for member, content in setup.members(folder / "dict-gcide.deb")
    }
    entries = gzip.decompress(found["gcide.dict.dz"])
    for line in found["gcide.index"].decode("utf-8", "replace").splitlines():
        word, start, length = line.split("\t")[:3]
        if not word.startswith("00"):
            start, length = number(start), number(length)
            entry = entries[start : start + length].decode("utf-8", "replace")
            yield re.sub(r"\[.*?\]", "", entry)


def number(text):
    """Reads a number in digits of base 64."""
    value = 0
    for digit in text:
        value = value * 64 + DIGITS.index(digit)
    return value


def docstrings(folder):
    """Yields what SymPy's modules, classes and functions say of themselves."""
    with zipfile.ZipFile(folder / "sympy.whl") as wheel:
        for name in sorted(wheel.namelist()):
            if name.endswith(".py"):
                for node in ast.walk(ast.parse(wheel.read(name))):
                    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                        yield ast.get_docstring(node) or ""


class Answers(html.parser.HTMLParser):
    """Collects the headings of a page, and the text under each."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.pairs, self.heading, self.depth = [], False, 0

    def handle_starttag(self, tag, attrs):
        self.depth += tag in ("pre", "script", "style")
        if re.fullmatch("h[1-6]", tag):
            self.heading = True
            self.pairs.append(["", ""])

    def handle_endtag(self, tag):
        self.depth -= tag in ("pre", "script", "style")
        if re.fullmatch("h[1-6]", tag):
            self.heading = False

    def handle_data(self, data):
        if self.pairs and not self.depth:
            self.pairs[-1][0 if self.heading else 1] += data


def questions(folder):
    """Yields the questions of Debian's FAQ with their answers."""
    for member, content in sorted(setup.members(folder / "debian-faq.deb")):
        if re.search(r"/FAQ/[a-z-]+\.en\.html$", member):
            parser = Answers()
            parser.feed(content.decode("utf-8", "replace"))
            for question, answer in parser.pairs:
                question = re.sub(r"^[\s\d.]+|[\s¶]+$", "", question)
                if question.endswith("?"):
                    yield clean(question), clean(answer)


def clean(text):
    """Returns a text on one line, no longer than an entry may be."""
    return re.sub(r"\s+", " ", text).strip()[:MAX_CHARACTERS]


def chosen(texts):
    """Returns `COUNT` of the texts, by their digests, and each once."""
    found = {}
    for text in texts:
        text = clean(text)
        if len(text) >= MIN_CHARACTERS:
            found.setdefault(hashlib.sha256(text.encode()).hexdigest(), text)
    return [{"id": key[:16], "text": found[key]} for key in sorted(found)[:COUNT]]


def asked(pairs):
    """Returns the lines of questions and of their answers."""
    lines, seen = [], set()
    for question, answer in pairs:
        key = hashlib.sha256(answer.encode()).hexdigest()[:16]
        if len(answer) >= MIN_CHARACTERS and key not in seen:
            seen.add(key)
            lines.append({"id": f"q{key}", "text": question, "answer": f"a{key}"})
            lines.append({"id": f"a{key}", "text": answer})
    return lines


def main():
    """Writes a file of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="source", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    kinds = {
        "quotations": chosen(quotations(options.source)),
        "dictionary": chosen(dictionary(options.source)),
        "docstrings": chosen(docstrings(options.source)),
        "questions": asked(questions(options.source)),
    }
    for name, lines in kinds.items():
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        place(options.to / f"{name}.jsonl", content.encode())
        print(f"{name}: {len(lines)} texts")


if __name__ == "__main__":
    main()
