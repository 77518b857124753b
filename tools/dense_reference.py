#!/usr/bin/env python3
"""Writes small random decoders without experts, with what transformers computes.

Each goes to OUT/CASE: config.json and model.safetensors as transformers stores them, and
reference.safetensors with `input_ids`, `attention_mask`, `last_hidden_state` and `logits`, like
those of `moe_reference.py`.

  python3 tools/dense_reference.py --out tests/references/dense
"""

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "rope_theta": 5000.0,
}
CASES = {
    "llama": {"model_type": "llama", "attention_bias": True, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "mistral-whole": {"model_type": "mistral", "sliding_window": None, "head_dim": 16},
    "qwen2": {"model_type": "qwen2", "sliding_window": 4, "use_sliding_window": False},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "attention_bias": False},
    "gemma3": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 4,
        "head_dim": 16,
        "sliding_window": 4,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 24,
        "rope_local_base_freq": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "gemma3-biased": {
        "model_type": "gemma3_text",
        "num_key_value_heads": 1,
        "head_dim": 24,
        "attention_bias": True,
        "sliding_window": 3,
        "layer_types": ["full_attention", "sliding_attention"],
        "tie_word_embeddings": False,
    },
}
LENGTHS = (13, 9)


def main():
    """Writes every case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    for seed, (name, config) in enumerate(CASES.items()):
        write_case(out / name, seed, config)


def write_case(folder, seed, config):
    """Writes a checkpoint and its reference."""
    torch.manual_seed(seed)
    shutil.rmtree(folder, ignore_errors=True)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SIZES | config)).eval()
    # Gemma's norms add 1 to their weights.
    mean = 0.0 if config["model_type"].startswith("gemma") else 1.0
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0.0, weight.shape[-1] ** -0.5)
            else:
                weight.normal_(mean, 0.3)
    model.save_pretrained(folder)
    ids = torch.randint(1, SIZES["vocab_size"], (len(LENGTHS), max(LENGTHS)))
    mask = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        mask[row, :length] = 1
    ids = ids * mask
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    kept = mask[:, :, None]
    tensors = {
        "input_ids": ids,
        "attention_mask": mask,
        "last_hidden_state": output.hidden_states[-1] * kept,
        "logits": output.logits * kept,
    }
    save_file(
        {name: value.contiguous() for name, value in tensors.items()},
        folder / "reference.safetensors",
    )
    (folder / "generation_config.json").unlink(missing_ok=True)
    for path in folder.iterdir():
        path.chmod(0o644)
    print(folder.name, f"deviation {output.logits[mask == 1].std():.2f}")


if __name__ == "__main__":
    main()
