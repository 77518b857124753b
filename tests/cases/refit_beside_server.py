#!/usr/bin/env python3
"""Refits a family beside a server that follows the pool under a memory limit.

Requests name plans with fitted maps, so sessions are made from fitted files all the time. Each
must be answered, before and after the server has loaded the new fits.
"""

import http.client
import json
import time

from case import PORT, Pool, Wrong, main

REFITS = 3


def ask(method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    connection.request(method, path, body and json.dumps(body))
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def infer(plan):
    text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["the mail server"]}
    body = {"inputs": [text], "parameters": {"plan": plan}}
    return ask("POST", "/v2/models/text/infer", body)


def wait_until(is_so, seconds, what):
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise Wrong(f"{what} took more than {seconds} s")
        time.sleep(0.2)


def is_ready():
    try:
        return ask("GET", "/v2/models/text/ready")[0] == 200
    except OSError:
        return False


def beside_server():
    with Pool() as pool:
        small = ["--family", "text", "--data", pool.texts, "--refit"]
        pool.run("profile", "--family", "text")
        server = pool.start(
            "serve",
            "--port",
            PORT,
            "--no-grpc",
            "--poll-pool",
            1,
            "--memory-limit",
            "120MB",
            log="server",
        )
        try:
            wait_until(is_ready, 120, "loading")
            quality = json.loads((pool.family / "quality.json").read_text())["plans"]
            plans = sorted(plan for plan in quality if ">" in plan or "exit" in plan)[:12]
            num_answered = 0
            for number in range(REFITS):
                refit = pool.start("fit", *small, "--max-tokens", 10 + number)
                rest = 5 * len(plans)
                while refit.poll() is None or rest > 0:
                    plan = plans[num_answered % len(plans)]
                    status, content = infer(plan)
                    if status != 200:
                        raise Wrong(f"{plan} during refit {number}: {status} {content[:200]}")
                    num_answered += 1
                    rest -= refit.poll() is not None
                if refit.returncode:
                    raise Wrong(f"the refit ended with {refit.returncode}")
        finally:
            server.terminate()
            server.wait(30)
        reloads = (pool.place / "server").read_text(errors="replace").count("new files of it")
        if not reloads:
            raise Wrong("the server has not loaded the new fits")
    return f"{num_answered} requests answered during {REFITS} refits and {reloads} reloads"


main(beside_server)
