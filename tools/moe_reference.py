#!/usr/bin/env python3
"""Writes small random mixture-of-experts language models, with what they compute.

Each goes to OUT/CASE: config.json, weights as Hugging Face transformers stores them, and
reference.safetensors, computed in f32 on the CPU from the weights as they lie on disk:

  input_ids, attention_mask  int64 [2, tokens], padded on the right with token 0
  last_hidden_state          f32 [2, tokens, width], after the last norm; 0 where padded
  logits                     f32 [2, tokens, vocabulary]; 0 where padded

Names of the experts in `model.layers.N.` (E experts, D width, I inner width). transformers 5 saves
the published layout; the fused one is how it holds them in memory, saved on request:

  mixtral    published  block_sparse_moe.gate.weight [E, D]
                        block_sparse_moe.experts.e.{w1,w3}.weight [I, D], .w2.weight [D, I]
             fused      mlp.gate.weight [E, D]
  qwen*,     published  mlp.gate.weight [E, D]
  olmoe                 mlp.experts.e.{gate,up}_proj.weight [I, D], .down_proj.weight [D, I]
             fused      mlp.gate.weight [E, D]
  granite*   published  block_sparse_moe.router.layer.weight [E, D]
                        block_sparse_moe.{input_linear [E, 2I, D], output_linear [E, D, I]}.weight
             fused      block_sparse_moe.router.weight [E, D]
  all        fused      {mlp,block_sparse_moe}.experts.gate_up_proj [E, 2I, D], gate (w1) half first
                        {mlp,block_sparse_moe}.experts.down_proj [E, D, I]

Some cases have config.json with the keys of transformers 4 (`has_earlier_keys`). transformers has
no ModuleFormer (MoLM): its reference is written from the formulas, in float64.

  python3 tools/moe_reference.py --out tests/references/moe
"""

import argparse
import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

MIN_MARGIN = 1e-3
"""Least difference of the last chosen expert's probability and that of the next."""
NUM_CANDIDATES = 2000
"""Texts among which those with the widest margins are sought."""
NUM_AT_ONCE = 250
GAIN = 1.2
"""Deviation of what a projection gives for inputs of deviation one."""


@dataclass(frozen=True)
class Case:
    """A checkpoint and how it is stored."""

    seed: int
    lengths: tuple[int, int]
    config: dict
    dtype: torch.dtype = torch.float32
    max_shard_size: str = "1GB"
    is_fused: bool = False
    has_earlier_keys: bool = False


MIXTRAL = Case(
    seed=1,
    lengths=(13, 9),
    config={
        "model_type": "mixtral",
        "vocab_size": 101,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rope_theta": 5000.0,
    },
)
QWEN2 = Case(
    seed=6,
    lengths=(8, 14),
    has_earlier_keys=True,
    config={
        "model_type": "qwen2_moe",
        "vocab_size": 103,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 44,
        "moe_intermediate_size": 18,
        "shared_expert_intermediate_size": 28,
        "num_experts": 10,
        "num_experts_per_tok": 4,
        "norm_topk_prob": False,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
        "rope_theta": 20000.0,
        "rms_norm_eps": 1e-3,
    },
)
QWEN3 = Case(
    seed=8,
    lengths=(12, 8),
    config={
        "model_type": "qwen3_moe",
        "vocab_size": 109,
        "hidden_size": 28,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "intermediate_size": 40,
        "moe_intermediate_size": 14,
        "num_experts": 12,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "rope_theta": 30000.0,
        "rms_norm_eps": 2e-3,
    },
)
OLMOE = Case(
    seed=4,
    lengths=(11, 7),
    has_earlier_keys=True,
    config={
        "model_type": "olmoe",
        "vocab_size": 107,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 12,
        "num_experts": 16,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "rms_norm_eps": 2e-3,
    },
)
GRANITE = Case(
    seed=9,
    lengths=(10, 15),
    has_earlier_keys=True,
    config={
        "model_type": "granitemoe",
        "vocab_size": 113,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 20,
        "num_local_experts": 6,
        "num_experts_per_tok": 3,
        "embedding_multiplier": 2.5,
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.21,
        "logits_scaling": 1.7,
        "rms_norm_eps": 3e-3,
    },
)
MODULEFORMER = Case(
    seed=15,
    lengths=(13, 10),
    config={
        "model_type": "moduleformer",
        "architectures": ["ModuleFormerForCausalLM"],
        "vocab_size": 101,
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 3,
        "att_hidden": 18,
        "ffd_hidden": 20,
        "activation_function": "gelu_new",
        "gating_size": 16,
        "n_att_experts": 5,
        "k_att": 2,
        "n_mlp_experts": 7,
        "k_mlp": 2,
        "gate_type": "mlp",
        "layer_norm_epsilon": 1e-5,
        "block_size": 16,
        "history_length": 8,
        "tie_word_embeddings": False,
    },
)


def changed(case, config=(), **storage):
    """Returns a case with some of its settings changed."""
    return replace(case, config=case.config | dict(config), **storage)


CASES = {
    "mixtral": MIXTRAL,
    "mixtral-fused": changed(MIXTRAL, is_fused=True),
    "mixtral-k1-odd": changed(
        MIXTRAL,
        {
            "vocab_size": 97,
            "hidden_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 10,
            "intermediate_size": 22,
            "num_local_experts": 5,
            "num_experts_per_tok": 1,
            "rope_theta": 777.0,
            "rms_norm_eps": 1e-3,
        },
        seed=2,
        lengths=(9, 15),
    ),
    "mixtral-sliding": changed(MIXTRAL, {"sliding_window": 4}, seed=3, lengths=(17, 12)),
    "mixtral-sharded-bf16": changed(
        MIXTRAL, seed=11, dtype=torch.bfloat16, max_shard_size="32KB", has_earlier_keys=True
    ),
    "olmoe": OLMOE,
    "olmoe-clip": changed(
        OLMOE,
        {
            "num_key_value_heads": 2,
            "num_experts": 10,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "clip_qkv": 0.7,
            "rope_theta": 2000.0,
        },
        seed=5,
        lengths=(8, 12),
        has_earlier_keys=False,
    ),
    "qwen2_moe": QWEN2,
    "qwen2_moe-fused": changed(QWEN2, is_fused=True, has_earlier_keys=False),
    "qwen2_moe-norm": changed(
        QWEN2,
        {
            "num_hidden_layers": 2,
            "num_experts_per_tok": 1,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "tie_word_embeddings": True,
        },
        seed=7,
        has_earlier_keys=False,
    ),
    "qwen3_moe": QWEN3,
    "qwen3_moe-f16": changed(
        QWEN3,
        {
            "num_hidden_layers": 3,
            "num_experts_per_tok": 3,
            "norm_topk_prob": False,
            "mlp_only_layers": [1],
            "attention_bias": True,
        },
        seed=12,
        dtype=torch.float16,
        has_earlier_keys=True,
    ),
    "granitemoe": GRANITE,
    "granitemoe-fused": changed(GRANITE, is_fused=True, has_earlier_keys=False),
    "granitemoeshared": changed(
        GRANITE,
        {
            "model_type": "granitemoeshared",
            "num_hidden_layers": 2,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 26,
            "tie_word_embeddings": True,
            "logits_scaling": 3.0,
        },
        seed=10,
        has_earlier_keys=False,
    ),
    "moduleformer": MODULEFORMER,
    "moduleformer-odd": changed(
        MODULEFORMER,
        {
            "vocab_size": 131,
            "n_embd": 22,
            "n_layer": 3,
            "att_hidden": 15,
            "ffd_hidden": 13,
            "gating_size": 9,
            "n_att_experts": 3,
            "k_att": 1,
            "n_mlp_experts": 6,
            "k_mlp": 3,
        },
        seed=16,
        lengths=(7, 11),
    ),
}


def main():
    """Writes the cases that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", choices=CASES, metavar="CASE", help=", ".join(CASES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for name in [arguments.only] if arguments.only else CASES:
        folder = arguments.out / name
        shutil.rmtree(folder, ignore_errors=True)
        margin = write_case(folder, CASES[name])
        for path in folder.iterdir():
            path.chmod(0o644)
        num_bytes = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{name}: {num_bytes} bytes, router margin {margin:.1e}")


def write_case(folder, case):
    """Writes a checkpoint and its reference; returns the least margin of its routers."""
    if case.config["model_type"] == "moduleformer":
        write_moduleformer(folder, case)
        run: ModuleFormer | Hub = ModuleFormer(folder)
    else:
        run = Hub(folder, write_hub(folder, case))
    return write_reference(folder / "reference.safetensors", run, case)


def write_hub(folder, case):
    """Saves a model of transformers; returns its parameters."""
    config = AutoConfig.for_model(**case.config, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config)
    random = numpy.random.default_rng(case.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shape = tuple(parameter.shape)
            parameter.copy_(torch.from_numpy(draw(random, name, shape, shape[-1])))
    model.to(case.dtype).save_pretrained(
        folder, max_shard_size=case.max_shard_size, save_original_format=not case.is_fused
    )
    (folder / "generation_config.json").unlink()
    if case.has_earlier_keys:
        rewrite_with_earlier_keys(folder / "config.json")
    return dict(model.named_parameters())


def draw(random, name, shape, fan_in):
    """Draws values at which a parameter matters to the outputs."""
    values = random.standard_normal(shape, numpy.float32)
    if name.endswith(("embed_tokens.weight", "wte.weight")):
        return 0.7 * values
    if len(shape) > 1:
        return values * numpy.float32(GAIN / math.sqrt(fan_in))
    return 0.25 * values + numpy.float32(name.endswith("weight"))


def rewrite_with_earlier_keys(path):
    """Gives a config the keys of transformers 4, which most published checkpoints have."""
    stored = json.loads(path.read_text())
    config = {key: value for key, value in stored.items() if value is not None}
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["rope_scaling"] = None
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    if config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    if "use_sliding_window" in config:
        # Off, yet set in what Qwen publishes: a reader that applies it is wrong.
        config["sliding_window"] = 3
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


class Hub:
    """A checkpoint that transformers loads, in f32."""

    def __init__(self, folder, saved):
        """Loads a checkpoint and checks that all that was saved came back."""
        self.model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
            output_loading_info=True,
        )
        assert not any(info.values()), info
        for name, parameter in self.model.eval().named_parameters():
            assert torch.equal(parameter, saved[name].float()), name
        self.num_chosen = self.model.config.num_experts_per_tok

    def __call__(self, ids, mask):
        """Returns last_hidden_state, logits, and (probabilities, chosen) of every router.

        # Shapes
        - ids, mask: [rows, tokens] int64
        - probabilities: [rows, tokens, experts]
        """
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        with torch.inference_mode():
            inner = self.model.model(**inputs, output_router_logits=True)
            logits = self.model(**inputs).logits
        routers = [
            (torch.softmax(scores.double(), -1).reshape(*ids.shape, -1).numpy(), self.num_chosen)
            for scores in inner.router_logits
        ]
        return inner.last_hidden_state.numpy(), logits.numpy(), routers


def write_reference(path, run, case):
    """Writes what a network computes for texts on which its routers are decided."""
    ids = choose_texts(run, case)
    mask = numpy.zeros_like(ids)
    for row, length in enumerate(case.lengths):
        mask[row, :length] = 1
    ids *= mask
    hidden, logits, routers = run(ids, mask)
    assert 0.3 < logits[mask == 1].std() < 10, logits[mask == 1].std()
    for probabilities, num_chosen in routers:
        chosen = numpy.argsort(-probabilities[mask == 1], -1)[:, :num_chosen]
        assert len(numpy.unique(chosen)) > num_chosen, "all tokens take the same experts"
    margin = margins(routers)[mask == 1].min()
    assert margin > MIN_MARGIN, margin
    save_file(
        {
            "input_ids": ids,
            "attention_mask": mask,
            "last_hidden_state": (hidden * mask[:, :, None]).astype(numpy.float32),
            "logits": (logits * mask[:, :, None]).astype(numpy.float32),
        },
        path,
    )
    return margin


def choose_texts(run, case):
    """Returns the texts, out of random ones, whose least router margin is widest."""
    num_tokens = max(case.lengths)
    random = numpy.random.default_rng(case.seed)
    texts = random.integers(1, case.config["vocab_size"], (NUM_CANDIDATES, num_tokens))
    parts = numpy.split(texts, NUM_CANDIDATES // NUM_AT_ONCE)
    margin = numpy.concatenate([margins(run(part, numpy.ones_like(part))[2]) for part in parts])
    rows = []
    for length in case.lengths:
        least = margin[:, :length].min(1)
        least[rows] = 0
        rows.append(int(least.argmax()))
    return texts[rows]


def margins(routers):
    """Returns the least margin over all routers, by row and token."""
    least = []
    for probabilities, num_chosen in routers:
        ordered = -numpy.sort(-probabilities, -1)
        least.append(ordered[..., num_chosen - 1] - ordered[..., num_chosen])
    return numpy.min(least, 0)


def write_moduleformer(folder, case):
    """Writes random weights under the names of MoLM's checkpoints."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(case.config, indent=2, sort_keys=True) + "\n")
    random = numpy.random.default_rng(case.seed)
    weights = {}
    for name, shape in moduleformer_shapes(case.config).items():
        fan_in = shape[-2] if name.endswith("experts.weight") else shape[-1]
        weights[name] = draw(random, name, shape, fan_in)
    # Buffers that the original class saves along; no reader needs them.
    context = case.config["block_size"] + case.config["history_length"]
    for layer in range(case.config["n_layer"]):
        attention = f"transformer.h.{layer}.attn"
        weights[f"{attention}.mask"] = numpy.tri(context, dtype=numpy.int8)
        weights[f"{attention}.cum_weight"] = numpy.tri(context, k=-1, dtype=numpy.float32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def moduleformer_shapes(config):
    """Returns the shapes of all parameters; those of experts are [expert, in, out]."""
    width, keys = config["n_embd"], config["att_hidden"]
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (config["vocab_size"], width)}
    for layer in range(config["n_layer"]):
        block = f"transformer.h.{layer}"
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
        shapes |= moduleformer_expert_shapes(
            f"{block}.attn.q_proj", config, config["n_att_experts"], keys
        )
        for name in ("k_proj", "v_proj"):
            shapes[f"{block}.attn.{name}.weight"] = (keys, width)
            shapes[f"{block}.attn.{name}.bias"] = (keys,)
        shapes |= moduleformer_expert_shapes(
            f"{block}.mlpf", config, config["n_mlp_experts"], config["ffd_hidden"]
        )
    return shapes | {
        "transformer.ln_f.weight": (width,),
        "transformer.ln_f.bias": (width,),
        "lm_head.weight": (config["vocab_size"], width),
    }


def moduleformer_expert_shapes(prefix, config, num_experts, inner):
    """Returns the shapes of a bank of experts and its router."""
    width, hidden = config["n_embd"], config["gating_size"]
    return {
        f"{prefix}.experts.weight": (num_experts, width, inner),
        f"{prefix}.output_experts.weight": (num_experts, inner, width),
        f"{prefix}.gate.w_gate.0.weight": (hidden, width),
        f"{prefix}.gate.w_gate.0.bias": (hidden,),
        f"{prefix}.gate.w_gate.3.weight": (num_experts, hidden),
    }


class ModuleFormer:
    """MoLM in float64: every expert runs, those not chosen have gate zero."""

    def __init__(self, folder):
        """Loads a checkpoint."""
        self.config = json.loads((folder / "config.json").read_text())
        stored = load_file(folder / "model.safetensors")
        self.weights = {name: tensor.astype(numpy.float64) for name, tensor in stored.items()}

    def __call__(self, ids, _mask):
        """Returns last_hidden_state, logits, and (probabilities, chosen) of every router.

        Padding is on the right and attention looks left only, so the mask changes nothing.
        """
        routers = []
        hidden = self.weights["transformer.wte.weight"][ids]
        for layer in range(self.config["n_layer"]):
            block = f"transformer.h.{layer}"
            normed = self.normalize(f"{block}.ln_1", hidden)
            hidden = hidden + self.attend(f"{block}.attn", normed, routers)
            normed = self.normalize(f"{block}.ln_2", hidden)
            hidden = hidden + self.feed(f"{block}.mlpf", normed, routers)
        hidden = self.normalize("transformer.ln_f", hidden)
        return hidden, hidden @ self.weights["lm_head.weight"].T, routers

    def normalize(self, name, x):
        """Applies a LayerNorm."""
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        scaled = centred / numpy.sqrt(variance + self.config["layer_norm_epsilon"])
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def project(self, name, x):
        """Applies a Linear with bias."""
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def gates(self, name, x, num_chosen, routers):
        """Returns the probabilities of the chosen experts, not renormalised, others zero."""
        hidden = gelu(self.project(f"{name}.gate.w_gate.0", x))
        scores = hidden @ self.weights[f"{name}.gate.w_gate.3.weight"].T
        powers = numpy.exp(scores - scores.max(-1, keepdims=True))
        probabilities = powers / powers.sum(-1, keepdims=True)
        routers.append((probabilities, num_chosen))
        least = -numpy.sort(-probabilities, -1)[..., num_chosen - 1 : num_chosen]
        return numpy.where(probabilities >= least, probabilities, 0)

    def feed(self, name, x, routers):
        """Runs the feed-forward experts."""
        gates = self.gates(name, x, self.config["k_mlp"], routers)
        inner = numpy.einsum("btd,edf->btef", x, self.weights[f"{name}.experts.weight"])
        outputs = self.weights[f"{name}.output_experts.weight"]
        return numpy.einsum("bte,btef,efd->btd", gates, gelu_new(inner), outputs, optimize=True)

    def attend(self, name, x, routers):
        """Runs stick-breaking attention, whose experts have queries and outputs of their own.

        # Shapes
        - queries: [rows, tokens, experts, heads, head width]
        - keys, values: [rows, tokens, heads, head width]
        """
        rows, tokens, _ = x.shape
        heads = self.config["n_head"]
        gates = self.gates(f"{name}.q_proj", x, self.config["k_att"], routers)
        queries = numpy.einsum("btd,eda->btea", x, self.weights[f"{name}.q_proj.experts.weight"])
        queries = queries.reshape(rows, tokens, gates.shape[-1], heads, -1)
        keys = self.project(f"{name}.k_proj", x).reshape(rows, tokens, heads, -1)
        values = self.project(f"{name}.v_proj", x).reshape(rows, tokens, heads, -1)
        scores = numpy.einsum("biehw,bjhw->behij", queries, keys) / math.sqrt(keys.shape[-1])
        mixed = numpy.einsum("behij,bjhw->biehw", break_stick(scores), values)
        mixed = mixed.reshape(rows, tokens, gates.shape[-1], -1)
        outputs = self.weights[f"{name}.q_proj.output_experts.weight"]
        return numpy.einsum("bte,btea,ead->btd", gates, mixed, outputs, optimize=True)


def break_stick(scores):
    """Returns a_ij = σ(l_ij) · exp(Σ_{m=j+1..i} log σ(−l_im)) for j ≤ i, else zero."""
    is_seen = numpy.tri(scores.shape[-1], dtype=bool)
    left = numpy.where(is_seen, -numpy.logaddexp(0, scores), 0)
    after = numpy.cumsum(left[..., ::-1], -1)[..., ::-1] - left
    return numpy.where(is_seen, numpy.exp(-numpy.logaddexp(0, -scores) + after), 0)


def gelu(x):
    """Applies the exact GELU, of the routers."""
    return 0.5 * x * (1 + numpy.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_new(x):
    """Applies the GELU by tanh, of the experts."""
    return 0.5 * x * (1 + numpy.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


if __name__ == "__main__":
    main()
