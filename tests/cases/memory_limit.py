"""Checks that `--memory-limit` holds while batches of every kind are answered.

For each share of the pool's weights a server runs under a limit of what an empty server holds and
that share. Clients ask both families for every plan on the fronts, in batches of 1 to 64, with
short and long texts, pixels and image files. The resident memory, sampled every 20 ms, is at most
1.1 times the limit, and every request is answered.

Environment: TESSERA (the binary), TESSERA_CACHE (the folder of profiles), CASE_PORT.
"""

import argparse
import base64
import http.client
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("TESSERA", ROOT / "target/release/tessera"))
CACHE = Path(os.environ.get("TESSERA_CACHE", ROOT / ".tessera/conformance-cache"))
PORT = int(os.environ.get("CASE_PORT", "18320"))
POOL = ROOT / "models"
SHARES = (1 / 3, 1 / 2, 0.7)
BATCHES = (1, 1, 1, 2, 4, 8, 16, 32, 64)
MOST = 1.1
PAGE = os.sysconf("SC_PAGE_SIZE")
SYLLABLES = ("ba", "ne", "ti", "lo", "ru", "sha", "king", "port", "er", "ing", "view", "mo", "st")


class Server:
    """A server over the default pool whose resident memory is watched."""

    def __init__(self, folder, *options):
        self.log = open(Path(folder) / "log", "w+")  # noqa: SIM115
        command = [
            BINARY,
            "serve",
            "--pool",
            POOL,
            "--port",
            str(PORT),
            "--no-grpc",
            "--cache",
            CACHE,
            *options,
        ]
        self.process = subprocess.Popen(command, stderr=self.log, stdout=self.log, cwd=ROOT)
        self.peak, self.is_over = 0, threading.Event()
        self.watcher = threading.Thread(target=self.watch)
        self.watcher.start()
        self.wait()

    def resident_bytes(self):
        """Returns the memory that the process holds now."""
        try:
            fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        except OSError:
            return 0
        return int(fields[1]) * PAGE if len(fields) > 1 else 0

    def watch(self):
        while not self.is_over.wait(0.02):
            self.peak = max(self.peak, self.resident_bytes())

    def wait(self):
        """Waits until every family is served."""
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            try:
                if ask("GET", "/v2/health/ready", None)[0] == 200:
                    return
            except OSError:
                pass
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.stop()
        self.log.seek(0)
        sys.exit(f"the server is not ready:\n{self.log.read()}")

    def stop(self):
        self.is_over.set()
        self.watcher.join()
        self.process.terminate()
        self.process.wait(60)


def ask(method, path, body):
    """Returns the status and the parsed answer of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=300)
    try:
        connection.request(method, path, json.dumps(body) if body else None)
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if content else None
    finally:
        connection.close()


def metric(name):
    """Returns the sum of a metric over its labels."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (.*)$", text, re.M))


def plans(family):
    """Returns the ids of the plans on the family's fronts for small and for large batches."""
    found = set()
    for shape in ("batch=1&tokens=16", "batch=8&tokens=128", "batch=16&tokens=256"):
        listed = ask("GET", f"/v2/models/{family}/plans?{shape}", None)[1]["plans"]
        found.update(plan["plan"] for plan in listed)
    return sorted(found)


def png(rng):
    """Returns a grey image of 280 × 280 pixels as a PNG file."""
    side = 280
    rows = b"".join(b"\0" + rng.randbytes(side) for _ in range(side))

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows, 1))
        + chunk(b"IEND", b"")
    )


def text(rng, words):
    """Returns a text of so many words, few of which are in another."""
    return " ".join("".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(words))


def question(rng, known):
    """Returns a request's path and body: any family, plan, batch and length."""
    family = rng.choice(("text", "text", "fashion"))
    batch = rng.choice(BATCHES)
    parameters = {} if rng.random() < 0.2 else {"plan": rng.choice(known[family])}
    if family == "text":
        words = rng.choice((3, 20, 60, 200))
        data = [text(rng, words) for _ in range(batch)]
        tensor = {"name": "text", "shape": [batch], "datatype": "BYTES", "data": data}
    elif rng.random() < 0.5:
        tensor = {
            "name": "pixel_values",
            "shape": [batch, 1, 28, 28],
            "datatype": "FP32",
            "data": [rng.randrange(-9, 9) / 8 for _ in range(batch * 784)],
        }
    else:
        files = [base64.b64encode(png(rng)).decode() for _ in range(min(batch, 16))]
        tensor = {"name": "image", "shape": [len(files)], "datatype": "BYTES", "data": files}
    body = {"inputs": [tensor], "parameters": parameters}
    return f"/v2/models/{family}/infer", body, batch


def mix(seed, count, num_clients):
    """Asks `count` questions from `num_clients` clients; returns the statuses and the rows."""
    known = {family: plans(family) for family in ("text", "fashion")}
    rng = random.Random(seed)
    questions = [question(rng, known) for _ in range(count)]
    statuses, rows, lock = {}, [0], threading.Lock()

    def client():
        while True:
            with lock:
                if not questions:
                    return
                path, body, batch = questions.pop()
            status, answer = ask("POST", path, body)
            with lock:
                rows[0] += batch
                statuses[status] = statuses.get(status, 0) + 1
                if status != 200:
                    print(path, batch, body["parameters"], status, answer, file=sys.stderr)

    clients = [threading.Thread(target=client) for _ in range(num_clients)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    return statuses, rows[0]


def long_batches():
    """Asks each of the dearest plans for 8 long texts, three times."""
    texts = ["the quick brown fox jumps over the lazy dog and runs through a field " * 14] * 8
    tensor = {"name": "text", "shape": [8], "datatype": "BYTES", "data": texts}
    statuses = {}
    for plan in plans("text")[-8:]:
        for _ in range(3):
            body = {"inputs": [tensor], "parameters": {"plan": plan}}
            status = ask("POST", "/v2/models/text/infer", body)[0]
            statuses[status] = statuses.get(status, 0) + 1
    return statuses


def pool_bytes():
    """Returns the size of the pool's files of weights."""
    files = (path for kind in ("*.safetensors", "*.onnx") for path in POOL.rglob(kind))
    return sum(path.stat().st_size for path in files)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=150, help="requests of the mix")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--options", default="", help="further options of the server")
    arguments = parser.parse_args()
    figures, is_right = [], True
    with tempfile.TemporaryDirectory() as folder:
        # Measures what is not in the cache, which takes memory that serving does not.
        Server(folder, "--no-preload").stop()
        empty = Server(folder, "--no-preload")
        base = empty.resident_bytes()
        empty.stop()
        for share in arguments.shares:
            limit = int(base + share * pool_bytes())
            server = Server(folder, "--memory-limit", f"{limit}B", *arguments.options.split())
            try:
                long = long_batches()
                peak_of_long = server.peak
                start = time.monotonic()
                statuses, rows = mix(arguments.seed, arguments.requests, arguments.clients)
                seconds = time.monotonic() - start
                loads = metric("tessera_runtime_module_loads_total")
            finally:
                server.stop()
            is_right &= server.peak <= MOST * limit and set(statuses) == {200} == set(long)
            figures.append(
                f"{share:.2f} of the pool, {limit / 1e6:.0f} MB: peak {server.peak / limit:.2f} "
                f"(long batches {peak_of_long / limit:.2f}), {statuses | {}} {rows / seconds:.0f} "
                f"rows/s, {loads:.0f} loads"
            )
            print(figures[-1], file=sys.stderr, flush=True)
    print(("right: " if is_right else "FAULT: ") + "; ".join(figures))
    sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    main()
