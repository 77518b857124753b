"""Changes of configurations: each key removed, set to null and to other values, and keys added.

A change is a pair of a key and a value. A key is `key`, `key.nested` or `file:key`; without a file
it is one of config.json.
"""

import copy
import random
from dataclasses import dataclass, field
from typing import Any

CONFIG = "config.json"
NESTED = ("model_args", "pretrained_cfg", "prompts", "processing_kwargs")
"""Keys whose values have keys of their own."""


class Removed:
    """The value of a key that is taken out."""

    def __repr__(self):
        return "removed"


REMOVED = Removed()
ACTIVATIONS = [
    "gelu",
    "gelu_10",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_python_tanh",
    "gelu_accurate",
    "gelu_pytorch_tanh",
    "hardswish",
    "laplace",
    "leaky_relu",
    "linear",
    "mish",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "swish",
    "tanh",
]
ROPES = [
    {"type": "default"},
    {"rope_type": "default", "rope_theta": 50.0},
    {"type": "linear", "factor": 2.0},
    {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0},
    {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0},
    {
        "rope_type": "yarn",
        "factor": 4.0,
        "rope_theta": 100.0,
        "original_max_position_embeddings": 8,
    },
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 10000.0,
    },
    {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.5},
]
# Values of keys, in place of those that follow from a key's type.
VALUES: dict[str, list] = {
    "hidden_size": [36, 48, 20],
    "num_hidden_layers": [1, 3, 0],
    "num_attention_heads": [1, 2, 6, 5],
    "num_key_value_heads": [1, 2, 4, 3],
    "head_dim": [4, 10, 7],
    "hidden_act": ACTIVATIONS,
    "pooler_act": ["relu", "gelu"],
    "id2label": [{"0": "a", "1": "b", "2": "c"}],
    "num_labels": [3, 1],
    "image_size": [8, 16, [12, 12], [8, 16], 14],
    "patch_size": [2, 6, [4, 4], [2, 4]],
    "num_channels": [1, 4],
    "pad_token_id": [0, 1, 3],
    "position_embedding_type": ["absolute", "relative_key", "relative_key_query"],
    "dtype": ["float32", "bfloat16", "float16"],
    "torch_dtype": ["float32", "bfloat16", "float16"],
    "problem_type": ["regression", "multi_label_classification"],
    "relative_attention_num_buckets": [8, 16, 12, 6],
    "rope_parameters": ROPES,
    "rope_scaling": ROPES,
    "rope_theta": [50, 500.0],
    "sliding_window": [3, 1, 0, 64],
    "max_window_layers": [0, 1],
    "layer_types": [
        ["full_attention", "full_attention"],
        ["sliding_attention", "full_attention"],
        ["full_attention"],
    ],
    "mlp_only_layers": [[], [0], [0, 1], [7]],
    "decoder_sparse_step": [1, 2, 3, 0],
    "num_experts": [4, 5],
    "num_local_experts": [4, 5],
    "num_experts_per_tok": [1, 3, 6, 9],
    "clip_qkv": [0.5, 2, 0.0],
    "shared_intermediate_size": [10, 0],
    "max_position_embeddings": [48, 16, 4],
    "pruned_heads": [{}, {"0": [1]}],
    "vocab_size": [60, 40],
    "tie_word_embeddings": [True, False],
    "per_layer_config": [{"0": {"intermediate_size": 16}}, {}],
    "bos_token_id": [1, 2],
    "eos_token_id": [2, [2, 3]],
    "chunk_size_feed_forward": [2, 4],
    "model_type": ["bert", "llama", "made_up"],
    "architectures": [["MadeUp"], []],
}
# Keys that stand in published configurations, or in those of relatives, and values for each.
COMMON: dict[str, list] = {
    "_name_or_path": ["somewhere/model"],
    "_commit_hash": ["0000"],
    "add_cross_attention": [False, True],
    "attention_bias": [False, True],
    "attention_dropout": [0.1],
    "attention_multiplier": [0.2],
    "attn_implementation": ["eager"],
    "attn_logit_softcapping": [0.5],
    "auto_map": [{"AutoModel": "made.Up"}],
    "classifier_dropout": [None, 0.1],
    "clip_qkv": [0.5],
    "cross_attention_hidden_size": [None, 8],
    "decoder_sparse_step": [2],
    "do_sample": [True],
    "embedding_multiplier": [2.0],
    "embedding_size": [12],
    "final_logit_softcapping": [0.5],
    "finetuning_task": ["sst"],
    "gradient_checkpointing": [False, True],
    "head_dim": [4, 10],
    "hidden_activation": ["gelu"],
    "intermediate_size": [30],
    "is_decoder": [False, True],
    "is_encoder_decoder": [False, True],
    "is_llama_config": [True],
    "layer_types": [["full_attention", "full_attention"], ["sliding_attention"] * 2],
    "logits_scaling": [2.0],
    "made_up": [3],
    "max_length": [5],
    "max_window_layers": [0],
    "mlp_bias": [False, True],
    "mlp_only_layers": [[0]],
    "moe_intermediate_size": [10],
    "n_group": [2],
    "norm_topk_prob": [True],
    "num_experts": [5],
    "num_local_experts": [5],
    "output_hidden_states": [True],
    "output_past": [True],
    "output_router_logits": [True],
    "pad_token_id": [0],
    "partial_rotary_factor": [0.5],
    "per_layer_config": [{"0": {"hidden_act": "relu"}}],
    "pooler_fc_size": [24],
    "pooler_type": ["first_token_transform"],
    "position_embedding_type": ["absolute", "relative_key"],
    "pretraining_tp": [1, 2],
    "pruned_heads": [{}, {"0": [1]}],
    "qk_layernorm": [True],
    "qkv_bias": [False, True],
    "quantization_config": [{"quant_method": "bitsandbytes", "load_in_4bit": True}],
    "residual_multiplier": [0.5],
    "return_dict": [True, False],
    "rope_interleaved": [False, True],
    "rope_local_base_freq": [50.0],
    "rope_ratio": [2],
    "rope_scaling": [None, *ROPES],
    "rope_theta": [50.0, 100],
    "router_jitter_noise": [0.1],
    "shared_expert_intermediate_size": [10],
    "shared_intermediate_size": [10],
    "sliding_window": [None, 3],
    "sliding_window_pattern": [1, 3],
    "temperature": [0.5],
    "tie_encoder_decoder": [False, True],
    "tie_last_hidden_states": [True],
    "tie_word_embeddings": [True, False],
    "torch_dtype": ["float32", "bfloat16"],
    "torchscript": [True, False],
    "type_vocab_size": [1],
    "use_bfloat16": [True],
    "use_cache": [False],
    "use_qk_norm": [True],
    "use_sliding_window": [False, True],
}


@dataclass(frozen=True)
class Change:
    """One key's other value."""

    key: str
    value: object

    def name(self):
        """Returns the key without its file and the keys above it, as an error names it."""
        return self.key.rpartition(":")[2].rpartition(".")[2]

    def made_in(self, files):
        """Makes the change in `files`, contents by name."""
        file, _, path = self.key.rpartition(":")
        content = files.setdefault(file or CONFIG, {})
        *above, last = path.split(".")
        for part in above:
            if isinstance(content, list):
                content = content[int(part)]
            else:
                # What another change took out, or made null, starts anew.
                content[part] = content.get(part) or {}
                content = content[part]
        index: Any = int(last) if isinstance(content, list) else last
        if self.value is not REMOVED:
            content[index] = copy.deepcopy(self.value)
        elif isinstance(content, list) or last in content:
            del content[index]

    def __str__(self):
        return f"{self.key} = {self.value!r}"


@dataclass(frozen=True)
class Space:
    """Configuration of a reader, and the values that its keys may have."""

    base: dict
    """Files by name."""
    values: dict = field(default_factory=dict)
    """Values by key, before those of `VALUES`."""
    added: dict = field(default_factory=dict)
    """Values of keys that the base does not have."""

    def singles(self):
        """Returns every change of one key."""
        changes = []
        for file, content in self.base.items():
            prefix = "" if file == CONFIG else f"{file}:"
            for path, value in flat(content):
                changes += [
                    Change(prefix + path, other) for other in self.others(prefix + path, value)
                ]
        known = {change.key for change in changes}
        for key, values in self.added.items():
            if key not in known:
                changes += [Change(key, value) for value in values]
        return changes

    def others(self, key, value):
        """Returns the other values of a key that has `value`."""
        name = Change(key, None).name()
        if key in self.values:
            others = self.values[key]
        elif name in VALUES:
            others = VALUES[name]
        else:
            others = of_type(value)
        return [REMOVED, None, *(other for other in others if not same(other, value))]

    def pairs(self, count, seed):
        """Returns `count` pairs of changes of different keys, drawn by `seed`."""
        choice = random.Random(seed)
        # A key counts once, however many values it has: activation functions would be every second.
        by_key: dict[str, list] = {}
        for change in self.singles():
            by_key.setdefault(change.key, []).append(change)
        keys = sorted(by_key)
        pairs = []
        for _ in range(count):
            pairs.append(tuple(choice.choice(by_key[key]) for key in choice.sample(keys, 2)))
        return pairs


def flat(content, above=""):
    """Returns the keys of a content with their values; lists and objects of lists count as keys."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        path = f"{above}{key}"
        yield path, value
        is_nested = key in NESTED or isinstance(content, list)
        if isinstance(value, dict) and is_nested:
            yield from flat(value, f"{path}.")


def same(value, other):
    """Returns whether two values are one in JSON."""
    return type(value) is type(other) and value == other


def of_type(value):
    """Returns other values of a value's type."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value * 2]
    if isinstance(value, float):
        return [0.3, 1, 0.0]
    if isinstance(value, str):
        return ["made_up"]
    return []
