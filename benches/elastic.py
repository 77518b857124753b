#!/usr/bin/env python3
"""Two ways to run a prefix of a network's width, side by side: packed constants, or inputs.

Exports plans of the family `fashion` at several widths and runs each in ONNX Runtime twice: with
its weights as constants, which the session packs, and with its weights as inputs over one mapped
float32 file, sliced at run time. Prints medians over rounds in turn, and the resident memory that
the sessions of all widths took together.

  .tessera/training/bin/python benches/elastic.py --binary target/release/tessera
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
import onnxruntime

import onnx
from onnx import numpy_helper

PLANS = {"whole": "l[0..6]", "w67": "l[0..6]{w67:0..6}", "w33": "l[0..6]{w33:0..6}"}
LARGE = 256


def main():
    """Measures each way in a process of its own, since memory is the process's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--binary", default="target/release/tessera")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--way", choices=["constants", "inputs"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measure(options.way, Path(options.folder), options.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, plan in PLANS.items():
            command = [options.binary, "export", "--family", "fashion", "--plan", plan]
            subprocess.run(
                [*command, "-o", f"{folder}/{name}.onnx"], check=True, stdout=subprocess.DEVNULL
            )
        for way in ["constants", "inputs"]:
            subprocess.run(
                [
                    sys.executable,
                    __file__,
                    "--way",
                    way,
                    "--folder",
                    folder,
                    "--rounds",
                    str(options.rounds),
                ],
                check=True,
            )


def measure(way, folder, rounds):
    """Runs every width one way."""
    before = resident()
    runs = {}
    for name in PLANS:
        model = onnx.load(folder / f"{name}.onnx")
        feeds = {"pixel_values": numpy.zeros((1, 1, 28, 28), numpy.float32)}
        if way == "inputs":
            model, weights = as_inputs(model, folder)
            feeds |= weights
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        session = onnxruntime.InferenceSession(model.SerializeToString(), settings)
        del model
        runs[name] = (session, feeds)
    times = {name: [] for name in runs}
    for number in range(rounds + 10):
        for name, (session, feeds) in runs.items():
            start = time.perf_counter()
            session.run(None, feeds)
            if number >= 10:
                times[name].append(time.perf_counter() - start)
    medians = ", ".join(f"{n} {statistics.median(t) * 1e3:.3f} ms" for n, t in times.items())
    print(f"{way}: {medians}; resident {(resident() - before) / 1e6:.1f} MB")


def as_inputs(model, folder):
    """Makes inputs of a model's large weights, which lie in one mapped float32 file."""
    graph = model.graph
    casts = {node.input[0]: node for node in graph.node if node.op_type == "Cast"}
    feeds = {}
    for tensor in list(graph.initializer):
        values = numpy_helper.to_array(tensor)
        cast = casts.get(tensor.name)
        if values.size < LARGE or cast is None:
            continue
        name = cast.output[0]
        path = folder / ("weights-" + tensor.name.split("/", 1)[-1].replace("/", "_"))
        if not path.exists():
            values.astype(numpy.float32).tofile(path)
        feeds[name] = numpy.memmap(path, numpy.float32, "r", shape=values.shape)
        graph.initializer.remove(tensor)
        graph.node.remove(cast)
        kind = onnx.TensorProto.FLOAT
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, values.shape))
    return model, feeds


def resident():
    """Returns the process's resident bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
