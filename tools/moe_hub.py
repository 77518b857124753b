"""Mixture-of-experts models of Hugging Face transformers: saved with random weights, and run.

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

Some cases have config.json with the keys of transformers 4 (`has_earlier_keys`).
"""

import json

import numpy
import torch
from moe_cases import draw
from transformers import AutoConfig, AutoModelForCausalLM


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
