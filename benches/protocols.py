#!/usr/bin/env python3
"""Measures one request over each protocol against a raw ONNX Runtime session, and prints Markdown.

    make protocols

The network has 12 encoder blocks of DeiT-Ti's size (`network.py`): 151 KB in, 151 KB out. Blocks of
requests over each protocol and of runs of the raw session follow one another, so that the machine's
wandering speed meets all alike; a ratio is the median over blocks of a block's median to that of the
raw session's block beside it. `tritonclient` is what people use; `bare` is a socket that sends bytes
made before, so that the client's own work is not counted. Needs benches/requirements.txt.
"""

import argparse
import http.client
import io
import json
import socket
import statistics
import subprocess
import time
from pathlib import Path

import network
import numpy
import onnxruntime
import serving
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient

FAMILY = "deit"
ROUNDS, BLOCK = 25, 40
RAW, BARE = "raw session", "HTTP binary, bare"
PATH = f"/v2/models/{FAMILY}/infer"


def add_options(parser):
    """Adds the options of everything that serves the network."""
    parser.add_argument("--binary", type=Path, default=serving.ROOT / "target/release/tessera")
    parser.add_argument(
        "--folder",
        type=Path,
        default=serving.ROOT / ".tessera/bench",
        help="where the network and its family are kept",
    )
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/tessera")


def main():
    """Imports the network, starts a server, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    options.pool = prepare(options)
    session = onnxruntime.InferenceSession(str(options.folder / "deit.onnx"))
    values = numpy.random.default_rng(0).normal(size=network.SHAPE).astype(numpy.float32)
    with serving.served(options) as server:
        ways = {RAW: lambda: session.run(None, {network.INPUT: values})}
        bare = Bare(server.http_port, values)
        ways |= {BARE: bare.ask} | clients(server, values)
        check(ways, server, values)
        times = measure(ways, options.rounds)
        stages = stages_of(server, values)
    print_table(ways, times)
    print_stages(stages)


def prepare(options):
    """Writes the network and imports it unless that is done; returns the pool."""
    pool, model = options.folder / "pool", options.folder / "deit.onnx"
    if not model.is_file():
        network.write(model)
    if not (pool / FAMILY).is_dir():
        pool.mkdir(parents=True, exist_ok=True)
        command = [options.binary, "import", "--pool", pool, "--family", FAMILY, model]
        subprocess.run(command, check=True, cwd=serving.ROOT)
    return pool


def clients(server, values):
    """Returns the ways of asking the server; each returns the output."""
    over_http = httpclient.InferenceServerClient(server.http_address)
    over_grpc = grpcclient.InferenceServerClient(server.grpc_address)

    def ask(module, client, **options):
        tensor = module.InferInput("pixel_values", network.SHAPE, "FP32")
        tensor.set_data_from_numpy(values, **options)
        wanted = module.InferRequestedOutput("logits", **options)
        return client.infer(FAMILY, [tensor], outputs=[wanted]).as_numpy("logits")

    return {
        "HTTP binary": lambda: ask(httpclient, over_http, binary_data=True),
        "gRPC": lambda: ask(grpcclient, over_grpc),
        "HTTP JSON": lambda: ask(httpclient, over_http, binary_data=False),
    }


class Bare:
    """A connection that sends the same bytes again and again, and reads into the same memory."""

    def __init__(self, port, values):
        raw = values.tobytes()
        tensor = {
            "name": "pixel_values",
            "shape": network.SHAPE,
            "datatype": "FP32",
            "parameters": {"binary_data_size": len(raw)},
        }
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        self.message = (
            (
                f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\n"
                f"inference-header-content-length: {len(head)}\r\n"
                f"content-length: {len(head) + len(raw)}\r\n\r\n"
            ).encode()
            + head
            + raw
        )
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.memory = memoryview(bytearray(1 << 20))
        self.stages = ""

    def ask(self):
        self.socket.sendall(self.message)
        length, end = 0, None
        while end is None or length < end:
            length += self.socket.recv_into(self.memory[length:])
            if (
                end is None
                and (head := bytes(self.memory[: min(length, 4096)])).find(b"\r\n\r\n") >= 0
            ):
                head_length = head.index(b"\r\n\r\n") + 4
                headers = http.client.parse_headers(io.BytesIO(head[head.index(b"\n") + 1 :]))
                end = head_length + int(headers["content-length"])
        self.stages = headers["server-timing"]
        start = head_length + int(headers["inference-header-content-length"])
        return numpy.frombuffer(self.memory[start:end], numpy.float32)


def check(ways, server, values):
    """Checks that every way gives what the raw session does."""
    expected = numpy.ravel(ways[RAW]())
    for name, way in ways.items():
        worst = numpy.abs(numpy.ravel(way()) - expected).max()
        if worst > 1e-4:
            raise SystemExit(f"{name} differs by {worst}")


def measure(ways, rounds):
    """Returns the milliseconds of each way, by round."""
    times = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds + 1):
        for name in names if number % 2 else reversed(names):
            way, block = ways[name], []
            # The threads of who ran before go to sleep first.
            time.sleep(0.02)
            for _ in range(BLOCK):
                start = time.perf_counter()
                way()
                block.append((time.perf_counter() - start) * 1e3)
            times[name].append(statistics.median(block[BLOCK // 4 :]))
    return {name: blocks[1:] for name, blocks in times.items()}


def stages_of(server, values):
    """Returns the medians of the stages of a bare request, and the client's time around them."""
    bare, found = Bare(server.http_port, values), []
    for _ in range(20 * BLOCK):
        start = time.perf_counter()
        bare.ask()
        elapsed = (time.perf_counter() - start) * 1e3
        stages = serving.stages_of(bare.stages)
        rest = stages["total"] - stages["preprocess"] - stages["queue"] - stages["compute"]
        found.append(
            stages
            | {"decode, plan, encode": rest, "sockets, HTTP, the client": elapsed - stages["total"]}
        )
    names = ["compute", "preprocess", "queue", "decode, plan, encode", "sockets, HTTP, the client"]
    return {name: statistics.median(stages[name] for stages in found) for name in names}


def print_table(ways, times):
    """Prints the protocols' table."""
    print("| way | p50 | ÷ raw session |\n|---|---|---|")
    for name in ways:
        pairs = zip(times[name], times[RAW], strict=False)
        ratio = statistics.median(one / raw for one, raw in pairs)
        print(f"| {name} | {statistics.median(times[name]):.2f} ms | {ratio:.3f} |")


def print_stages(stages):
    """Prints where a request's time goes."""
    whole = sum(stages.values())
    print("\n| stage | p50 | share |\n|---|---|---|")
    for name, milliseconds in stages.items():
        print(f"| {name} | {milliseconds:.3f} ms | {milliseconds / whole:.1%} |")


if __name__ == "__main__":
    main()
