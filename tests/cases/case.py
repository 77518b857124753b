"""What the cases share, of the standard library alone: a pool to work on, texts, and runs that are killed.

A case is a script beside this file. It exits 0 where everything is right and prints one line.
Environment: TESSERA_BINARY (the binary), TESSERA_CACHE (the folder of profiles), CASE_CACHE (that of
the runs that are killed).
"""

import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import BINARY, CACHE, ROOT, Server, eventually

__all__ = ["BINARY", "CACHE", "ROOT", "Pool", "Server", "Wrong", "ask", "eventually", "main"]

WORDS = [
    "server",
    "mail",
    "invoice",
    "garden",
    "meeting",
    "price",
    "night",
    "question",
    "river",
    "window",
    "letter",
    "train",
    "coffee",
    "paper",
    "answer",
    "summer",
    "music",
    "number",
    "house",
    "market",
]


class Pool:
    """A copy of the default pool's family `text`, whose weights are linked."""

    def __init__(self):
        build = ROOT / "target"
        build.mkdir(exist_ok=True)
        self.place = Path(tempfile.mkdtemp(prefix="case-", dir=build))
        self.pool = self.place / "pool"
        self.family = self.pool / "text"
        source = ROOT / "models/text"
        for path in sorted(source.rglob("*")):
            to = self.family / path.relative_to(source)
            if path.is_dir():
                continue
            to.parent.mkdir(parents=True, exist_ok=True)
            if "anchors" in path.parts:
                os.link(path.resolve(), to)
            else:
                shutil.copy(path, to)
        self.texts = self.place / "texts.jsonl"
        choice = random.Random(1)
        lines = [
            {"id": str(number), "text": " ".join(choice.choices(WORDS, k=10))}
            for number in range(180)
        ]
        self.texts.write_text("\n".join(map(json.dumps, lines)))
        cache = os.environ.get("CASE_CACHE", self.place / "cache")
        self.cache = ["--cache", str(cache)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.place, ignore_errors=True)

    def serve(self, *options):
        """Starts a server over the pool."""
        return Server(self.pool, *self.cache, *options)

    def start(self, command, *arguments):
        """Starts the binary."""
        with (self.place / "log").open("wb") as output:
            return subprocess.Popen(
                [BINARY, command, "--pool", self.pool, *self.cache, *map(str, arguments)],
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )

    def run(self, command, *arguments):
        """Runs the binary to its end and returns how long it took."""
        start = time.monotonic()
        status = self.start(command, *arguments).wait()
        if status:
            log = (self.place / "log").read_text(errors="replace").strip().splitlines()
            raise Wrong(f"{command} ended with {status}: {log[-1:]}")
        return time.monotonic() - start

    def run_killed(self, seconds, command, *arguments):
        """Kills the binary after some time; returns whether it still ran."""
        process = self.start(command, *arguments)
        try:
            process.wait(seconds)
            return False
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True

    def litter(self):
        """Returns what no run in good order leaves in the family's folder."""
        records = json.loads((self.family / "fits.json").read_text())
        used = set(records.get("superseded", []))
        for kind in ("maps", "experts"):
            used |= {record.get("file", name) for name, record in records.get(kind, {}).items()}
        names = {path.relative_to(self.family).as_posix() for path in self.family.rglob("*")}
        return sorted(
            name
            for name in names
            if "/." in f"/{name}" or (name.startswith("fits/") and name not in used)
        )


def ask(server, path, body=None):
    """Returns the status and the answer of one request; one with a body is posted."""
    connection = http.client.HTTPConnection(server.http_address, timeout=300)
    try:
        connection.request("POST" if body else "GET", path, body and json.dumps(body))
        response = connection.getresponse()
        content = response.read()
        return response.status, json.loads(content) if content else None
    finally:
        connection.close()


class Wrong(Exception):
    """Something that a case finds wrong."""


def main(case):
    """Runs a case, prints its line and exits."""
    name = Path(sys.argv[0]).stem
    try:
        print(f"right: {name}: {case()}")
    except Wrong as error:
        print(f"WRONG: {name}: {error}")
        sys.exit(1)
