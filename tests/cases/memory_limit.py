"""Checks that `--memory-limit` holds while batches of every kind are answered.

For each share of the pool's weights a server runs under a limit of what an empty server holds and
that share. Clients ask both families for every plan on the fronts, in batches of 1 to 64, with
short and long texts, pixels and image files. The most memory that the process ever holds is at most
1.1 times the limit, and every request is answered.
"""

import argparse
import base64
import random
import struct
import sys
import threading
import time
import zlib

from case import CACHE, ROOT, Server, ask

POOL = ROOT / "models"
SHARES = (1 / 3, 1 / 2, 0.7)
BATCHES = (1, 1, 1, 2, 4, 8, 16, 32, 64)
MOST = 1.1
SYLLABLES = ("ba", "ne", "ti", "lo", "ru", "sha", "king", "port", "er", "ing", "view", "mo", "st")


def serve(*options):
    """Starts a server over the default pool."""
    return Server(POOL, "--no-grpc", "--cache", CACHE, *options)


def plans(server, family):
    """Returns the ids of the plans on the family's fronts for small and for large batches."""
    found = set()
    for shape in ("batch=1&tokens=16", "batch=8&tokens=128", "batch=16&tokens=256"):
        listed = ask(server, f"/v2/models/{family}/plans?{shape}")[1]["plans"]
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


def mix(server, seed, count, num_clients):
    """Asks `count` questions from `num_clients` clients; returns the statuses and the rows."""
    known = {family: plans(server, family) for family in ("text", "fashion")}
    rng = random.Random(seed)
    questions = [question(rng, known) for _ in range(count)]
    statuses, rows, lock = {}, [0], threading.Lock()

    def client():
        while True:
            with lock:
                if not questions:
                    return
                path, body, batch = questions.pop()
            status, answer = ask(server, path, body)
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


def long_batches(server):
    """Asks each of the dearest plans for 8 long texts, three times."""
    texts = ["the quick brown fox jumps over the lazy dog and runs through a field " * 14] * 8
    tensor = {"name": "text", "shape": [8], "datatype": "BYTES", "data": texts}
    statuses = {}
    for plan in plans(server, "text")[-8:]:
        for _ in range(3):
            body = {"inputs": [tensor], "parameters": {"plan": plan}}
            status = ask(server, "/v2/models/text/infer", body)[0]
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
    # Measures what is not in the cache, which takes memory that serving does not.
    serve("--no-preload").stop()
    with serve("--no-preload") as empty:
        base = empty.memory_bytes()
    for share in arguments.shares:
        limit = int(base + share * pool_bytes())
        with serve("--memory-limit", f"{limit}B", *arguments.options.split()) as server:
            long = long_batches(server)
            peak_of_long = server.memory_bytes("VmHWM")
            start = time.monotonic()
            statuses, rows = mix(server, arguments.seed, arguments.requests, arguments.clients)
            seconds = time.monotonic() - start
            loads = server.metric("tessera_runtime_module_loads_total")
            peak = server.memory_bytes("VmHWM")
        is_right &= peak <= MOST * limit and set(statuses) == {200} == set(long)
        figures.append(
            f"{share:.2f} of the pool, {limit / 1e6:.0f} MB: peak {peak / limit:.2f} "
            f"(long batches {peak_of_long / limit:.2f}), {statuses} {rows / seconds:.0f} "
            f"rows/s, {loads:.0f} loads"
        )
        print(figures[-1], file=sys.stderr, flush=True)
    print(("right: " if is_right else "FAULT: ") + "; ".join(figures))
    sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    main()
