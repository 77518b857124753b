"""The mixture-of-experts checkpoints of the references, and how their weights are drawn."""

import math
from dataclasses import dataclass, replace

import numpy
import torch

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


def draw(random, name, shape, fan_in):
    """Draws values at which a parameter matters to the outputs."""
    values = random.standard_normal(shape, numpy.float32)
    if name.endswith(("embed_tokens.weight", "wte.weight")):
        return 0.7 * values
    if len(shape) > 1:
        return values * numpy.float32(GAIN / math.sqrt(fan_in))
    return 0.25 * values + numpy.float32(name.endswith("weight"))
