"""A language model whose experts do not fit into the memory that the server may take."""

import hashlib
import json
import statistics
import tempfile
import time
import unittest
import urllib.request
from pathlib import Path

import numpy
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from served import Served

WORDS, WIDTH, INNER, EXPERTS, LAYERS, CHOSEN = 256, 512, 1536, 8, 5, 2
EXPERT_BYTES = 3 * WIDTH * INNER * 4
ALL_BYTES = EXPERT_BYTES * EXPERTS * LAYERS
OTHER_NETWORKS = 2 + 2 * LAYERS
"""Stem and head, and every layer's attention and router."""
CONFIG = {
    "model_type": "mixtral",
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": CHOSEN,
    "rope_theta": 1e4,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
}
MANIFEST = """name = "language"
task = "language-model"
description = "Random weights."
license = "Apache-2.0"
reference = "a"
limits = { max_tokens = 32, max_batch = 4 }
output = { name = "logits", width = 256, per_token = true, states = "last_hidden_state" }
quality = { metric = "recall@10", file = "quality.json" }
[anchors.a]
folder = "a"
[anchors.a.sha256]
"""
NUM_TEXTS = 16
NUM_TOKENS = 8


def shapes():
    """Returns the shape of every tensor of the checkpoint."""
    found = {"model.embed_tokens.weight": (WORDS, WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{block}.{norm}.weight"] = (WIDTH,)
        for letter, rows in (("q", WIDTH), ("k", WIDTH // 4), ("v", WIDTH // 4), ("o", WIDTH)):
            found[f"{block}.self_attn.{letter}_proj.weight"] = (rows, WIDTH)
        found[f"{block}.block_sparse_moe.gate.weight"] = (EXPERTS, WIDTH)
        for expert in range(EXPERTS):
            name = f"{block}.block_sparse_moe.experts.{expert}"
            found |= {
                f"{name}.w1.weight": (INNER, WIDTH),
                f"{name}.w3.weight": (INNER, WIDTH),
                f"{name}.w2.weight": (WIDTH, INNER),
            }
    return found


def write_checkpoint(path):
    """Writes random weights as a safetensors file, tensor by tensor."""
    random = numpy.random.default_rng(1)
    header, offset = {}, 0
    for name, shape in shapes().items():
        end = offset + 4 * int(numpy.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes().values():
            values = random.standard_normal(shape, numpy.float32)
            is_matrix = len(shape) > 1
            values = values / shape[-1] ** 0.5 if is_matrix else 1 + 0.1 * values
            file.write(values.tobytes())


def write_family(folder):
    """Writes a family of one language model."""
    anchor = folder / "a"
    anchor.mkdir(parents=True)
    (anchor / "config.json").write_text(json.dumps(CONFIG))
    write_checkpoint(anchor / "model.safetensors")
    manifest = MANIFEST
    for path in sorted(anchor.iterdir()):
        with open(path, "rb") as file:
            manifest += f'"a/{path.name}" = "{hashlib.file_digest(file, "sha256").hexdigest()}"\n'
    (folder / "family.toml").write_text(manifest)


def ask(server, ids, **parameters):
    """Returns the answer about a text and the seconds that it took."""
    tensor = {"name": "input_ids", "shape": [1, len(ids)], "datatype": "INT64", "data": ids}
    body = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    url = f"http://{server.http_address}/v2/models/language/infer"
    start = time.perf_counter()
    with urllib.request.urlopen(url, body, timeout=60) as response:
        answer = json.load(response)
    return answer, time.perf_counter() - start


def num_experts(answer):
    """Returns how many experts an answer's tokens took, over all layers."""
    routing = json.loads(answer["parameters"]["routing"])
    return sum(count > 0 for module in routing.values() for count in module["taken"])


class Experts(unittest.TestCase):
    """Experts are loaded when tokens want them, and give way to one another."""

    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory()
        cls.folder = Path(cls.scratch.name) / "language"
        write_family(cls.folder)
        random = numpy.random.default_rng(2)
        cls.texts = random.integers(1, WORDS, (NUM_TEXTS, NUM_TOKENS)).tolist()

    @classmethod
    def tearDownClass(cls):
        cls.scratch.cleanup()

    def answers(self, server):
        """Asks about all texts; returns answers, seconds, and how many experts were wanted."""
        made = [ask(server, text, explain=True) for text in self.texts]
        wanted = sum(num_experts(answer) for answer, _ in made)
        return [answer["outputs"] for answer, _ in made], [time for _, time in made], wanted

    def test_experts_that_do_not_fit_under_the_memory_limit_answer_as_without_it(self):
        free = Served("--no-preload", families={"language": self.folder})
        try:
            base = free.memory_bytes()
            expected, _, _ = self.answers(free)
            again, fast, _ = self.answers(free)
            self.assertEqual(again, expected)
            self.assertGreater(free.metric("tessera_runtime_resident_bytes"), 0.9 * ALL_BYTES)
            self.check_both_protocols(free)
        finally:
            free.stop()
        print(
            f"\nexperts {ALL_BYTES / 1e6:.0f} MB, process without weights {base / 1e6:.0f} MB; "
            f"{NUM_TEXTS} texts of {NUM_TOKENS} tokens: median "
            f"{statistics.median(fast) * 1e3:.1f} ms without a limit"
        )
        for times in (3, 1):
            self.check_under(ALL_BYTES // times, expected, statistics.median(fast))

    def check_under(self, limit, expected, fast):
        """Compares answers under a memory limit with those without, which take `fast` seconds."""
        server = Served(
            "--no-preload", "--memory-limit", f"{limit}B", families={"language": self.folder}
        )
        try:
            before = server.metric("tessera_runtime_module_loads_total")
            found, times, wanted = self.answers(server)
            loads = server.metric("tessera_runtime_module_loads_total") - before
            self.assertEqual(found, expected)
            self.assertGreater(server.metric("tessera_runtime_module_evictions_total"), 10)
            self.assertLess(server.metric("tessera_runtime_resident_bytes"), limit)
            # What is being loaded is there twice for a moment: as it is read, and as it is packed.
            most = server.memory_bytes("VmHWM")
            self.assertLess(most, limit + 3 * EXPERT_BYTES)
        finally:
            server.stop()
        uses, slow = wanted + OTHER_NETWORKS * NUM_TEXTS, statistics.median(times)
        print(
            f"limit {limit / 1e6:.0f} MB, peak {most / 1e6:.0f} MB: {uses} uses of networks, "
            f"{loads:.0f} loads, {1 - loads / uses:.0%} hits; median {slow * 1e3:.1f} ms, "
            f"{slow / fast:.1f} times as long"
        )

    def check_both_protocols(self, server):
        """Asks over HTTP and gRPC for last hidden states only."""
        made = {}
        addresses = {httpclient: server.http_address, grpcclient: server.grpc_address}
        for module, address in addresses.items():
            client = module.InferenceServerClient(address)
            ids = numpy.array(self.texts[:2], numpy.int64)
            tensor = module.InferInput("input_ids", list(ids.shape), "INT64")
            tensor.set_data_from_numpy(ids)
            answers = [
                client.infer("language", [tensor], outputs=[module.InferRequestedOutput(name)])
                for name in ("last_hidden_state", "logits")
            ]
            self.assertIsNone(answers[0].as_numpy("logits"))
            made[module.__name__] = [
                answers[0].as_numpy("last_hidden_state"),
                answers[1].as_numpy("logits"),
            ]
            client.close()
        (states, logits), others = made.values()
        self.assertEqual(states.shape, (2, NUM_TOKENS, WIDTH))
        self.assertEqual(logits.shape, (2, NUM_TOKENS, WORDS))
        numpy.testing.assert_allclose(states, others[0], rtol=1e-5, atol=1e-5)
        numpy.testing.assert_allclose(logits, others[1], rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    unittest.main()
