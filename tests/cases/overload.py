"""Checks that nothing which an overload taught outlasts it.

A server gets several times the requests that it can answer in time. Of twenty single requests that
follow once all of those have ended, at least nineteen are answered, the last of them by the best
plan, and every model is still ready.
"""

import subprocess
import sys

from case import BINARY, CACHE, ROOT, Server, ask, eventually

RATES = (6_000, 20_000)
SECONDS = 6
BUDGET_MS = 60
NUM_AFTER = 20
TEXT = " ".join(["The quick brown fox reads the letters of last summer."] * 6)


def infer(server, **parameters):
    """Returns the status of one text and the plan that answered it."""
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}
    body = {"inputs": [tensor], "parameters": parameters}
    status, answer = ask(server, "/v2/models/text/infer", body)
    return status, answer.get("parameters", {}).get("plan")


def has_settled(server):
    """Returns whether every request that was accepted has ended, and nothing waits."""
    metrics = server.metrics()
    accepted = metrics.total("tessera_api_requests_accepted_total")
    ended = metrics.total("tessera_api_requests_total")
    return accepted == ended and metrics.total("tessera_serve_queue_depth") == 0


def overload(server, rate):
    """Sends requests at `rate` a second, whatever becomes of them."""
    subprocess.run(
        [
            BINARY,
            "bench",
            "--pool",
            ROOT / "models",
            "--family",
            "text",
            "--url",
            f"http://{server.http_address}",
            "--budgets-ms",
            str(BUDGET_MS),
            "--capacity",
            str(rate),
            "--loads",
            "1",
            "--seconds",
            str(SECONDS),
            "--fixed",
            "0",
        ],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def main():
    """Runs the case; returns whether all is right."""
    is_right = True
    with Server(ROOT / "models", "--no-grpc", "--cache", CACHE) as server:
        best = infer(server)[1]
        for rate in RATES:
            overload(server, rate)
            eventually(lambda: has_settled(server))
            after = [infer(server, latency_budget_ms=BUDGET_MS) for _ in range(NUM_AFTER)]
            answered = [plan for status, plan in after if status == 200]
            ready = ask(server, "/v2/models/text/ready")[0]
            is_back = len(answered) >= NUM_AFTER - 1 and after[-1] == (200, best)
            is_right &= is_back and ready == 200
            print(
                f"overload: after {rate} requests a second {len(answered)} of {NUM_AFTER} "
                f"are answered, the last by {after[-1][1]}",
                flush=True,
            )
    return is_right


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
