#!/usr/bin/env python3
"""Measures a running Tessera server over HTTP and prints Markdown.

    python3 benches/serving.py                   everything
    python3 benches/serving.py --only budgets    one of the sections
    python3 benches/serving.py --transcript      three curl commands and their answers

Starts the server itself, one per section, and stops it with SIGTERM. Needs Python 3.9 and nothing
else. Figures are of this machine; let nothing else run on it.
"""

import argparse
import contextlib
import http.client
import json
import math
import os
import random
import re
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support import ROOT, Server

INFER = "/v2/models/text/infer"
REFERENCE_PLAN = "l6[0..6]"
ANSWER_SECONDS = 600


class Connected(Server):
    """A server and one keep-alive connection to it."""

    def __init__(self, options):
        super().__init__(
            options.pool,
            "--cache",
            options.cache.resolve(),
            "--threads",
            options.threads,
            binary=options.binary.resolve(),
        )
        self.connection = http.client.HTTPConnection(self.http_address, timeout=ANSWER_SECONDS)

    def ask(self, method, path, body=None):
        """Returns the status, the headers, the body and the milliseconds it took."""
        headers = {"content-type": "application/json"} if body else {}
        start = time.perf_counter()
        self.connection.request(method, path, body, headers)
        response = self.connection.getresponse()
        answer = response.read()
        return response.status, response.headers, answer, (time.perf_counter() - start) * 1e3

    def infer(self, text, **parameters):
        """Returns the status, the decoded answer, the stages' milliseconds and the client's."""
        body = infer_body(text, parameters).encode()
        status, headers, answer, elapsed = self.ask("POST", INFER, body)
        return status, json.loads(answer), stages_of(headers.get("server-timing", "")), elapsed

    def front(self, batch=1, tokens=128):
        path = f"/v2/models/text/plans?batch={batch}&tokens={tokens}"
        status, _, answer, _ = self.ask("GET", path)
        if status != 200:
            sys.exit(f"GET {path}: {status} {answer.decode(errors='replace')}")
        return json.loads(answer)["plans"]

    def megabytes(self):
        """Returns the resident megabytes by kind."""
        return {kind: self.memory_bytes(kind) / 1e6 for kind in ("VmRSS", "RssAnon", "RssFile")}


@contextlib.contextmanager
def served(options, loaded=True):
    with Connected(options) as server, contextlib.closing(server.connection):
        if loaded:
            server.wait_until_loaded()
        yield server


def command_of(options, command):
    return [
        str(options.binary.resolve()),
        command,
        "--pool",
        str(options.pool.resolve()),
        "--cache",
        str(options.cache.resolve()),
        "--threads",
        str(options.threads),
    ]


def infer_body(text, parameters):
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}
    return json.dumps({"inputs": [tensor], "parameters": parameters}, ensure_ascii=False)


def stages_of(server_timing):
    return {name: float(value) for name, value in re.findall(r"(\w+);dur=([\d.]+)", server_timing)}


def percentile(values, percent):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(len(ordered) * percent / 100) - 1)]


def expect_ok(result):
    if result[0] != 200:
        sys.exit(f"a request failed with {result[0]}: {result[1]}")
    return result[1]


def read_texts():
    mails = ROOT / ".tessera/data/mails/heldout.jsonl"
    if mails.is_file():
        return [json.loads(line)["text"] for line in mails.open(encoding="utf-8")]
    return json.loads((ROOT / "tests/references/texts.json").read_text(encoding="utf-8")) * 20


def num_tokens(server, text):
    return expect_ok(server.infer(text, plan=REFERENCE_PLAN, explain=True))["parameters"]["tokens"]


def text_of_length(server, texts, tokens):
    """Returns the start of a mail that has `tokens` tokens, or hardly less."""
    words = max(texts[:200], key=len).split()
    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        fits = num_tokens(server, " ".join(words[:middle])) <= tokens
        low, high = (middle, high) if fits else (low, middle - 1)
    return " ".join(words[:low])


def measure_cold_start(options, texts):
    with served(options):
        pass
    ready, answered = [], []
    for _ in range(options.starts):
        with served(options, loaded=False) as server:
            ready.append(time.perf_counter() - server.started)
            expect_ok(server.infer(texts[0], plan=REFERENCE_PLAN))
            answered.append(time.perf_counter() - server.started)
    for what, seconds in (("ready", ready), (f"the first answer of `{REFERENCE_PLAN}`", answered)):
        spread = f"{min(seconds) * 1e3:.0f} to {max(seconds) * 1e3:.0f}"
        row(
            f"process start to {what}",
            f"{statistics.median(seconds) * 1e3:.0f} ms",
            f"median of {len(seconds)}, {spread}; profiles in the cache",
        )


def measure_end_to_end(options, texts):
    with served(options) as server:
        text = text_of_length(server, texts, 128)
        length = num_tokens(server, text)
        samples = []
        for index in range(options.requests + 20):
            result = server.infer(text, plan=REFERENCE_PLAN)
            expect_ok(result)
            if index >= 20:
                samples.append(dict(result[2], client=result[3]))
    p50 = {stage: statistics.median(s[stage] for s in samples) for stage in samples[0]}
    inside = statistics.median(
        s["total"] - s["preprocess"] - s["queue"] - s["compute"] for s in samples
    )
    outside = statistics.median(s["client"] - s["total"] for s in samples)
    base = p50["compute"]
    row(
        "client's latency",
        f"{p50['client']:.2f} ms",
        f"`{REFERENCE_PLAN}`, {length} tokens, p50 of {len(samples)}, one connection",
    )
    row("client ÷ compute", f"{p50['client'] / base:.3f}", "")
    row(
        "(client − tokenization) ÷ compute", f"{(p50['client'] - p50['preprocess']) / base:.3f}", ""
    )
    row("compute", f"{base:.2f} ms", "Server-Timing")
    row("tokenization", f"{p50['preprocess']:.3f} ms", "Server-Timing")
    row("queue", f"{p50['queue']:.3f} ms", "Server-Timing")
    row(
        "rest of the server", f"{inside:.3f} ms", "JSON, hand-over to and from the inference thread"
    )
    row("outside the server", f"{outside:.3f} ms", "HTTP, loopback, Python's client")


def draw_requests(server, texts, options):
    """Returns (text, its length, budget) with budgets that some plan meets."""
    chance = random.Random(options.seed)
    draws = []
    while len(draws) < options.budgets:
        words = chance.choice(texts).split()
        text = " ".join(words[: chance.randint(1, 200)])
        length = num_tokens(server, text)
        costs = [plan["predicted_latency_ms"] for plan in server.front(tokens=length)]
        ends = math.log(min(costs) * 1.15 + 1.0), math.log(max(costs) * 1.5)
        draws.append((text, length, math.exp(chance.uniform(*ends))))
    return draws


def measure_budgets(options, texts):
    answered, refused, preprocess = [], [], []
    with served(options) as server:
        draws = draw_requests(server, texts, options)
        for plan in server.front():
            server.infer(draws[0][0], plan=plan["plan"])
        for text, _, budget in draws:
            status, answer, stages, _ = server.infer(text, latency_budget_ms=budget)
            if status == 200:
                answered.append((budget, answer["parameters"]))
                preprocess.append(stages["preprocess"])
            else:
                refused.append(status)
    errors = [
        abs(p["predicted_latency_ms"] - p["latency_ms"]) / p["latency_ms"] for _, p in answered
    ]
    num_predicted = sum(p["predicted_latency_ms"] > budget for budget, p in answered)
    num_measured = sum(p["latency_ms"] > budget for budget, p in answered)
    lengths = [length for _, length, _ in draws]
    span = f"{min(lengths)} to {max(lengths)}, median {statistics.median(lengths):.0f}"
    share = lambda count: f"{count} of {len(answered)} ({count / max(1, len(answered)):.1%})"
    row(
        "random budgets answered",
        f"{len(answered)} of {len(draws)}",
        f"seed {options.seed}; tokens {span}; refused: {counts_of(refused) or 'none'}",
    )
    row("predicted over budget", share(num_predicted), "must be 0")
    row("measured over budget", share(num_measured), "the server's latency, tokenization included")
    row(
        "\\|predicted − measured\\| ÷ measured",
        f"p50 {percentile(errors, 50):.3f}, p95 {percentile(errors, 95):.3f}",
        "",
    )
    row("tokenization", f"p50 {percentile(preprocess, 50):.3f} ms", "")
    row("distinct plans chosen", str(len({p["plan"] for _, p in answered})), "")


def counts_of(statuses):
    return ", ".join(f"{statuses.count(status)} with {status}" for status in sorted(set(statuses)))


def measure_impossible_budgets(options, texts):
    with served(options) as server:
        text = texts[0]
        status, answer, _, _ = server.infer(text, latency_budget_ms=0.001)
        cheapest = server.front(tokens=num_tokens(server, text))[0]["plan"]
    is_named = cheapest in json.dumps(answer)
    row(
        "a budget of 0.001 ms",
        f"{status}, cheapest plan {'named' if is_named else 'NOT named'}",
        f"`{json.dumps(answer.get('cheapest', answer))}`",
    )
    if status != 422 or not is_named:
        sys.exit(f"an impossible budget was answered wrongly: {status} {answer}")


def measure_memory(options, texts):
    with served(options, loaded=False) as server:
        at_start = server.megabytes()
        server.wait_until_loaded()
        shapes = [(batch, tokens) for batch in (1, 8, 32) for tokens in (16, 64, 128, 256)]
        plans = {plan["plan"] for shape in shapes for plan in server.front(*shape)}
        text = text_of_length(server, texts, 128)
        for plan in sorted(plans):
            expect_ok(server.infer(text, plan=plan))
        metrics, after = server.metrics(), server.megabytes()
    ran = metrics.by("module", "tessera_runtime_module_duration_seconds_count")
    weights = weights_of(options, set(ran))
    loaded = metrics.total("tessera_runtime_resident_bytes") / 1e6
    split = lambda memory: f"anonymous {memory['RssAnon']:.0f}, file {memory['RssFile']:.0f}"
    total = weights["f32"] + weights["int8"]
    grown = after["VmRSS"] - at_start["VmRSS"]
    row("resident when ready", f"{at_start['VmRSS']:.0f} MB", split(at_start))
    row(f"resident after {len(plans)} plans", f"{after['VmRSS']:.0f} MB", split(after))
    row(
        "weights of the modules that ran",
        f"{total:.1f} MB",
        f"f32 {weights['f32']:.1f}, int8 {weights['int8']:.1f}; {weights['modules']} modules; "
        f"loaded by the server's account {loaded:.1f}",
    )
    row(
        "resident ÷ weights",
        f"{after['VmRSS'] / total:.2f}",
        f"growth since ready ÷ weights {grown / total:.2f}, "
        f"anonymous ÷ weights {after['RssAnon'] / total:.2f}",
    )


def weights_of(options, used):
    """Returns the megabytes of the modules in `used`, by precision."""
    command = [*command_of(options, "inspect"), "--family", "text", "--json", "--log", "error"]
    listing = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    weights = {"f32": 0.0, "int8": 0.0, "modules": 0}
    for module in json.loads(listing):
        if module["name"] in used:
            kind = "int8" if (module["variant"] or "").endswith("int8") else "f32"
            weights[kind] += module["weight_bytes"] / 1e6
            weights["modules"] += module["weight_bytes"] > 0
    return weights


def show_transcript(options, texts):
    text = next(t for t in texts if 300 < len(t) < 600 and "'" not in t).replace("\n", " ")
    with served(options) as server:
        costs = [p["predicted_latency_ms"] for p in server.front(tokens=num_tokens(server, text))]
        for cost in (costs[0], math.sqrt(costs[0] * costs[-1]), costs[-1]):
            # Half a millisecond is left for tokenization.
            body = infer_body(text, {"latency_budget_ms": round(1.25 * cost + 0.5, 1)})
            command = ["curl", "-s", f"{server.http_address}{INFER}", "-d", body]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
            print("$ " + " ".join(map(shlex.quote, command)))
            print(shortened(json.loads(answer)) + "\n")


def shortened(answer):
    for output in answer.get("outputs", []):
        output["data"] = [*output["data"][:3], "…"]
    return json.dumps(answer, indent=2, ensure_ascii=False)


def row(what, figure, note):
    print(f"| {what} | {figure} | {note} |", flush=True)


def machine():
    processors = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", processors, re.M)
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return f"{os.cpu_count()} cores of {model[1] if model else 'unknown'}, load average {load}"


SECTIONS = {
    "cold-start": measure_cold_start,
    "end-to-end": measure_end_to_end,
    "budgets": measure_budgets,
    "impossible": measure_impossible_budgets,
    "memory": measure_memory,
}


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/tessera")
    parser.add_argument("--pool", type=Path, default=ROOT / "models")
    parser.add_argument("--cache", type=Path, default=ROOT / "target/serving-cache")
    parser.add_argument("--threads", type=int, default=0, help="0 for as many as there are cores")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="may be repeated")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--budgets", type=int, default=300)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--transcript", action="store_true")
    return parser.parse_args()


def main():
    options = parse_options()
    if not options.binary.is_file():
        sys.exit(f"{options.binary} is not there; run `make build`")
    texts = read_texts()
    if options.transcript:
        show_transcript(options, texts)
        return
    print(f"{machine()}; threads {options.threads or 'as many as cores'}\n")
    for name in options.only or SECTIONS:
        print(f"### {name}\n\n| what | figure | |\n|---|---|---|", flush=True)
        SECTIONS[name](options, texts)
        print()


if __name__ == "__main__":
    main()
