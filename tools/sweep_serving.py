"""Serves many small families at once, and compares their answers with the references."""

import hashlib
import http.client
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support import Server

TOLERANCE = 1e-4
"""Largest difference of two outputs, divided by 1 + |the reference|."""
REFUSAL = re.compile(r"not loaded: family `([^`]+)`: (.*)")
OUTPUTS = {"embedding": "embedding", "images": "logits", "logits": "logits", "texts": "embedding"}
TASKS = {
    "embedding": "sentence-embedding",
    "texts": "sentence-embedding",
    "images": "image-classification",
    "logits": "language-model",
}


def write_manifest(folder, kind, reference):
    """Writes family.toml beside the anchor's folder `a`."""
    lines = [
        f'name = "{folder.name}"',
        'description = "Random weights."\nlicense = "MIT"\nreference = "a"',
        f'task = "{TASKS[kind]}"',
        "[limits]\nmax_batch = 8",
    ]
    if kind != "images":
        lines.append(f"max_tokens = {reference.max_tokens}")
    lines.append(f'[output]\nname = "{OUTPUTS[kind]}"\nwidth = {reference.output.shape[-1]}')
    if kind == "logits":
        lines.append('per_token = true\nstates = "last_hidden_state"')
    metric = "accuracy" if kind == "images" else "recall@10"
    lines.append(f'[quality]\nmetric = "{metric}"\nfile = "quality.json"')
    if kind == "images":
        channels, height, width = reference.inputs["pixel_values"].shape[1:]
        lines.append(f"[image]\nchannels = {channels}\nheight = {height}\nwidth = {width}")
        lines.append(f"mean = {[0.5] * channels}\nstd = {[0.5] * channels}")
    lines.append('[anchors.a]\nfolder = "a"')
    if (folder / "a/tokenizer.json").exists():
        lines.append('tokenizer = "a/tokenizer.json"')
    lines.append("[anchors.a.sha256]")
    for path in sorted(folder.glob("a/**/*")):
        if path.suffix in (".json", ".safetensors"):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lines.append(f'"{path.relative_to(folder)}" = "{digest}"')
    (folder / "family.toml").write_text("\n".join(lines) + "\n")


class Pool(Server):
    """A server over a pool of which families may be refused."""

    def is_ready(self):
        """Returns whether every family is served or refused."""
        self.check_runs()
        return "every family is loaded or failed" in self.messages()

    def post(self, path, body):
        """Returns the status and the content of an answer."""
        connection = http.client.HTTPConnection(self.http_address, timeout=60)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def index(self):
        """Returns the families with their states."""
        return self.post("/v2/repository/index", {})[1]

    def compare(self, name, reference):
        """Returns the largest difference of a family's answer, or what went wrong."""
        kinds = {"f": "FP32", "i": "INT64"}
        inputs = [
            {
                "name": key,
                "shape": list(value.shape),
                "datatype": kinds[value.dtype.kind],
                "data": value.ravel().tolist(),
            }
            for key, value in reference.inputs.items()
        ]
        if reference.texts:
            texts = {"datatype": "BYTES", "data": reference.texts}
            inputs = [{"name": "text", "shape": [len(reference.texts)], **texts}]
        try:
            status, answer = self.post(f"/v2/models/{name}/infer", {"inputs": inputs})
        except (OSError, http.client.HTTPException) as error:
            return f"no answer: {error}"
        if status != 200:
            return f"{status}: {answer}"
        output = answer["outputs"][0]
        found = numpy.array(output["data"], dtype=numpy.float64).reshape(output["shape"])
        expected = reference.output
        if found.shape != expected.shape:
            return f"shape {found.shape} in place of {expected.shape}"
        difference = numpy.abs(found - expected) / (1 + numpy.abs(expected))
        if reference.mask is not None:
            difference = difference[reference.mask == 1]
        return float(difference.max())


def answers(binary, pool, references, cache):
    """Serves a pool; returns each family's reason for refusal, or its difference.

    The value of a name is a pair: whether it was served, and what was found.
    """
    options = ["--no-grpc", "--no-preload", "--cache", cache]
    # Refused families do not end the server.
    settings = {"TESSERA_EXIT_ON_ERROR": "false"}
    with Pool(pool, *options, binary=binary, environment=settings) as server:
        states = {entry["name"]: entry for entry in server.index()}

        reasons = dict(REFUSAL.findall(server.messages()))

        def found(name):
            if states.get(name, {}).get("state") != "READY":
                return False, reasons.get(name, "no reason in the log")
            if references[name] is None:
                return True, "served"
            return True, server.compare(name, references[name])

        with ThreadPoolExecutor(2) as threads:
            return dict(zip(references, threads.map(found, references), strict=True))
