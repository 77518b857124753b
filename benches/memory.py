"""What a memory limit of a part of the pool costs: answers a second, peak, failures.

Two servers over the families `text` and `fashion`, one without a limit and one with what an empty
server holds and a share of the pool's files of weights; one client asks both in turns.
"""

import argparse
import time
from statistics import median

from served_pool import PIXELS, POOL, TEXT, post, serve

PLANS = [
    ("text", TEXT, "l6[0..6]"),
    ("text", TEXT, "l6[0..6]{int8:0..6}"),
    ("text", TEXT, "l6[0..3]{int8:0..3}"),
    ("text", TEXT, "l3[0..3]"),
    ("fashion", PIXELS, "l[0..6]"),
    ("fashion", PIXELS, "s[0..6]"),
]
# Not part of the default pool.
OTHERS = {"mpnet"}


def pool_bytes():
    """Returns the size of the files of weights of the default pool."""
    files = (path for kind in ("*.safetensors", "*.onnx") for path in POOL.rglob(kind))
    return sum(path.stat().st_size for path in files if not OTHERS & set(path.parts))


def rate(server, repeats):
    """Returns answers a second when each plan is asked for `repeats` times before the next."""
    start = time.perf_counter()
    for family, tensor, plan in PLANS:
        for _ in range(repeats):
            status, answer = post(server, family, tensor, plan=plan)
            if status != 200:
                raise RuntimeError(f"{plan}: {status}, {answer}")
    return len(PLANS) * repeats / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of both servers in turns")
    parser.add_argument("--share", type=float, default=1 / 3, help="of the pool that may be held")
    arguments = parser.parse_args()
    # What is not profiled yet takes memory that serving does not.
    serve("--no-preload").stop()
    free = serve("--no-preload")
    base = free.memory_bytes()
    rate(free, 1)
    weights = pool_bytes()
    limit = int(base + weights * arguments.share)
    tight = serve("--memory-limit", f"{limit}B")
    print(
        f"pool {weights / 1e6:.0f} MB, an empty server {base / 1e6:.0f} MB, "
        f"limit {limit / 1e6:.0f} MB",
        flush=True,
    )
    for repeats in (1, 10, 100):
        pairs = [(rate(free, repeats), rate(tight, repeats)) for _ in range(arguments.rounds)]
        shares = median(limited / unlimited for unlimited, limited in pairs)
        unlimited, limited = (median(rates) for rates in zip(*pairs, strict=False))
        print(
            f"each plan {repeats} times before the next: {unlimited:.1f} a second without, "
            f"{limited:.1f} with, ratio {shares:.3f}",
            flush=True,
        )
    loads, gone = (
        tight.metric(f"tessera_runtime_module_{name}_total") for name in ("loads", "evictions")
    )
    peak = tight.memory_bytes("VmHWM")
    print(
        f"peak {peak / 1e6:.0f} MB ({peak / limit:.2f} of the limit), "
        f"{loads:.0f} loads, {gone:.0f} evictions, no failed request"
    )
    for server in (free, tight):
        server.stop()


if __name__ == "__main__":
    main()
