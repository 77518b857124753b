#!/usr/bin/env python3
"""Refits a family beside a server that follows the pool under a memory limit.

Requests name plans with fitted maps, so sessions are made from fitted files all the time. Each
must be answered, before and after the server has loaded the new fits.
"""

import json

from case import Pool, Wrong, ask, main

REFITS = 3


def infer(server, plan):
    text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["the mail server"]}
    body = {"inputs": [text], "parameters": {"plan": plan}}
    return ask(server, "/v2/models/text/infer", body)


def ask_beside_refits(pool, server, options):
    """Asks without a pause while the family is fitted again and again; returns how often."""
    quality = json.loads((pool.family / "quality.json").read_text())["plans"]
    plans = sorted(plan for plan in quality if ">" in plan or "exit" in plan)[:12]
    num_answered = 0
    for number in range(REFITS):
        refit = pool.start("fit", *options, "--max-tokens", 10 + number)
        rest = 5 * len(plans)
        while refit.poll() is None or rest > 0:
            plan = plans[num_answered % len(plans)]
            status, answer = infer(server, plan)
            if status != 200:
                raise Wrong(f"{plan} during refit {number}: {status} {answer}")
            num_answered += 1
            rest -= refit.poll() is not None
        if refit.returncode:
            raise Wrong(f"the refit ended with {refit.returncode}")
    return num_answered


def beside_server():
    with Pool() as pool:
        small = ["--family", "text", "--data", pool.texts, "--refit"]
        pool.run("profile", "--family", "text")
        with pool.serve("--no-grpc", "--poll-pool", 1, "--memory-limit", "120MB") as server:
            num_answered = ask_beside_refits(pool, server, small)
        reloads = server.messages().count("new files of it")
        if not reloads:
            raise Wrong("the server has not loaded the new fits")
    return f"{num_answered} requests answered during {REFITS} refits and {reloads} reloads"


main(beside_server)
