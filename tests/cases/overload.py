"""Checks that nothing which an overload taught outlasts it.

A server gets several times the requests that it can answer in time, then none for a second. Of
twenty single requests that follow, at least nineteen are answered, the last of them by the best
plan, and every model is still ready.
"""

import http.client
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from case import BINARY, PORT, ROOT

RATES = (6_000, 20_000)
SECONDS = 6
BUDGET_MS = 60
NUM_AFTER = 20
TEXT = " ".join(["The quick brown fox reads the letters of last summer."] * 6)


def ask(method, path, body=None):
    """Returns the status and the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
    connection.request(method, path, json.dumps(body) if body else None)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, json.loads(content) if content else None


def infer(**parameters):
    """Returns the status of one text and the plan that answered it."""
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}
    status, answer = ask(
        "POST", "/v2/models/text/infer", {"inputs": [tensor], "parameters": parameters}
    )
    return status, answer.get("parameters", {}).get("plan")


def wait_until_ready(server):
    """Waits until every family is loaded."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if ask("GET", "/v2/health/ready")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("wrong: the server is not ready")


def overload(rate):
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
            f"http://127.0.0.1:{PORT}",
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
    with tempfile.TemporaryDirectory() as folder:
        with (Path(folder) / "log").open("wb") as log:
            server = subprocess.Popen(
                [BINARY, "serve", "--pool", ROOT / "models", "--port", str(PORT), "--no-grpc"],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until_ready(server)
            best = infer()[1]
            for rate in RATES:
                overload(rate)
                time.sleep(1)
                after = [infer(latency_budget_ms=BUDGET_MS) for _ in range(NUM_AFTER)]
                answered = [plan for status, plan in after if status == 200]
                ready = ask("GET", "/v2/models/text/ready")[0]
                is_back = len(answered) >= NUM_AFTER - 1 and after[-1] == (200, best)
                is_right &= is_back and ready == 200
                print(
                    f"overload: after {rate} requests a second {len(answered)} of {NUM_AFTER} "
                    f"are answered, the last by {after[-1][1]}",
                    flush=True,
                )
        finally:
            server.terminate()
            server.wait()
    return is_right


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
