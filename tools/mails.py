#!/usr/bin/env python3
"""Turns the SpamAssassin mails into the two text sets of the `text` family.

Reads `DIR/GROUP/*.txt` (raw mails, one a file) and writes `calibration.jsonl`, on which stitches
and exits are fitted, and `mails.jsonl`, on which quality is measured. A line is `{"id", "text",
"label"}`; the text is subject, newline, readable body, and the label is `spam` or `ham`. Which set
a mail belongs to depends on its id alone.

    python3 tools/mails.py --from .tessera/data/spam-assassin/data --to .tessera/data/mails
"""

import argparse
import email
import email.header
import email.policy
import hashlib
import html.parser
import json
import os
import re
from pathlib import Path

MIN_CHARACTERS = 20
MAX_CHARACTERS = 4_000
KEY_CHARACTERS = 200
HELD_OUT_SHARE = 0.26

MAILBOX_LINE = re.compile(rb"\AFrom [^\n]*\n")


class ReadableText(html.parser.HTMLParser):
    """Collects the text between HTML tags, without scripts and style sheets."""

    HIDDEN = frozenset({"script", "style"})

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.pieces = []
        self.hidden = None

    def handle_starttag(self, tag, attrs):
        if tag in self.HIDDEN:
            self.hidden = tag
        self.pieces.append(" ")

    def handle_endtag(self, tag):
        if tag == self.hidden:
            self.hidden = None

    def handle_data(self, data):
        if self.hidden is None:
            self.pieces.append(data)


def strip_tags(markup):
    """Returns the readable text of an HTML document, however broken."""
    parser = ReadableText()
    try:
        parser.feed(markup)
        parser.close()
    except AssertionError:
        return re.sub(r"<[^>]*>", " ", markup)
    return "".join(parser.pieces)


def collapse(text):
    """Returns the text with runs of white space and control characters made one space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def decode(raw, charset):
    """Decodes bytes by the charset they claim, or by the first of two usual ones that fits."""
    for name in (charset, "utf-8"):
        try:
            return raw.decode(name or "utf-8")
        except (LookupError, ValueError):
            continue
    return raw.decode("windows-1252", errors="replace")


def decode_header(value):
    """Decodes a header with RFC 2047 words in it."""
    try:
        parts = email.header.decode_header(str(value))
    except (email.errors.HeaderParseError, ValueError):
        return str(value)
    return "".join(p if isinstance(p, str) else decode(p, c) for p, c in parts)


def body(mail):
    """Returns the plain parts of a mail, or its HTML parts where it has no plain ones."""
    texts = {"text/plain": [], "text/html": []}
    for part in mail.walk():
        kind = part.get_content_type()
        if kind not in texts or part.get_content_disposition() == "attachment":
            continue
        text = decode(part.get_payload(decode=True) or b"", part.get_content_charset())
        texts[kind].append(strip_tags(text) if kind == "text/html" else text)
    return collapse(" ".join(texts["text/plain"])) or collapse(" ".join(texts["text/html"]))


def read_mail(path):
    """Returns the text of one mail: subject, newline, body."""
    raw = MAILBOX_LINE.sub(b"", path.read_bytes())
    mail = email.message_from_bytes(raw, policy=email.policy.compat32)
    subject = collapse(decode_header(mail["subject"] or ""))
    return f"{subject}\n{body(mail)}"[:MAX_CHARACTERS].strip()


def read_all(folder):
    """Yields (id, text) of every mail that is long enough and the first with its opening words."""
    seen = {""}
    for path in sorted(folder.glob("*/*.txt")):
        text = read_mail(path)
        key = " ".join(re.findall(r"\w+", text.lower()))[:KEY_CHARACTERS]
        if len(text) >= MIN_CHARACTERS and key not in seen:
            seen.add(key)
            yield f"{path.parent.name}/{path.stem}", text


def digest_of(mail_id):
    """Returns a number for a mail, from 0 to 1, that depends on nothing but its id."""
    return int.from_bytes(hashlib.sha256(mail_id.encode()).digest()[:8], "big") / 2**64


def write_lines(path, mails):
    """Writes one JSON object a line, so that the file is there whole or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for mail_id, text in mails:
            label = "spam" if mail_id.startswith("spam") else "ham"
            line = {"id": mail_id, "text": text, "label": label}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(partial, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", type=Path, required=True, metavar="DIR")
    parser.add_argument("--to", dest="target", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()
    held_out, calibration = [], []
    for mail in read_all(arguments.source):
        (held_out if digest_of(mail[0]) < HELD_OUT_SHARE else calibration).append(mail)
    # The first ones are a sample of all, of spam as of the rest.
    held_out.sort(key=lambda mail: digest_of(mail[0]))
    arguments.target.mkdir(parents=True, exist_ok=True)
    write_lines(arguments.target / "calibration.jsonl", calibration)
    write_lines(arguments.target / "mails.jsonl", held_out)
    print(f"{len(calibration)} mails for calibration, {len(held_out)} held out")


if __name__ == "__main__":
    main()
