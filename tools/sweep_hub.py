"""Readers of what transformers saves: encoders, vision transformers and decoders."""

import copy
import json

import torch
import transformers
from sweep_changes import COMMON, CONFIG, Space
from sweep_reference import (
    Reference,
    Unreadable,
    draw_images,
    draw_tokens,
    shake,
    write_checkpoint,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

MAX_PARAMETERS = 3_000_000
"""A configuration whose defaults make a larger model is tried with the tensors of the base."""

ENCODER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "vocab_size": 50,
    "max_position_embeddings": 32,
}
IMAGE = {
    "image_size": 12,
    "patch_size": 4,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "num_labels": 5,
}
DECODER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 50,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = DECODER | {"num_experts_per_tok": 2}


class Hub:
    """A reader of the checkpoints of one class of transformers."""

    def __init__(self, config, model, kind, sizes, values=None):
        """`kind` is `embedding`, `logits` or `images`."""
        self.config_class, self.model_class, self.kind = config, model, kind
        stored = json.loads(config(**sizes).to_json_string(use_diff=False))
        stored.pop("_name_or_path", None)
        # transformers writes heads by id2label; the number of classes follows from it.
        self.space = Space({CONFIG: stored}, values or {}, COMMON)

    def write(self, folder, files, base):
        """Writes a checkpoint of the configuration; returns what the library computes with it.

        With `base`, the tensors are those of that folder.
        """
        raw = files[CONFIG]
        write_checkpoint(folder, raw, base, self.save)
        if self.kind == "embedding":
            # An encoder needs one, but is asked by token ids.
            words = {f"word{number}": number for number in range(40)}
            Tokenizer(WordLevel(words, "word0")).save(str(folder / "tokenizer.json"))
        return self.run(folder, raw)

    def save(self, folder, raw):
        """Saves a model of the configuration, with random weights."""
        try:
            config = self.config_class.from_dict(copy.deepcopy(raw))
            with torch.device("meta"):
                count = sum(p.numel() for p in self.model_class(config).parameters())
            if count > MAX_PARAMETERS:
                raise Unreadable(f"{count} parameters")
            config = self.config_class.from_dict(copy.deepcopy(raw))
            config.dtype = torch.float32
            config._attn_implementation = "eager"
            model = self.model_class(config).float()
        except Unreadable:
            raise
        except Exception as error:  # The library fails in any way on values that it does not know.
            raise Unreadable(f"{type(error).__name__}: {error}") from error
        shake(model)
        model.save_pretrained(folder)

    def run(self, folder, raw):
        """Returns what the library computes with the checkpoint in `folder`."""
        if raw.get("model_type", self.config_class.model_type) != self.config_class.model_type:
            raise Unreadable("another architecture")
        # What runs is told to the loader, and not what a configuration may prefer.
        options = {"attn_implementation": "eager", "dtype": torch.float32}
        if self.kind == "logits":
            options["experts_implementation"] = "eager"
        try:
            model, info = self.model_class.from_pretrained(
                folder, output_loading_info=True, **options
            )
            if info["missing_keys"] or info.get("mismatched_keys"):
                raise Unreadable(f"the tensors do not fit: {info}")
            return self.computed(model.eval())
        except Unreadable:
            raise
        except Exception as error:
            raise Unreadable(f"{type(error).__name__}: {error}") from error

    def computed(self, model):
        """Returns inputs and outputs of a model."""
        config = model.config
        if self.kind == "images":
            sides = config.image_size
            sides = [sides, sides] if isinstance(sides, int) else list(sides)
            images = draw_images(3, [config.num_channels, *sides])
            with torch.inference_mode():
                logits = model(pixel_values=images, return_dict=True).logits
            return Reference({"pixel_values": images.numpy()}, logits.numpy())
        ids, mask = draw_tokens()
        inputs = {"input_ids": ids, "attention_mask": mask}
        with torch.inference_mode():
            found = model(**inputs, return_dict=True)
        arrays = {name: value.numpy() for name, value in inputs.items()}
        if self.kind == "logits":
            return Reference(arrays, found.logits.numpy(), mask.numpy())
        weights = mask.unsqueeze(-1).float()
        mean = (found.last_hidden_state * weights).sum(1) / weights.sum(1)
        return Reference(arrays, torch.nn.functional.normalize(mean, dim=-1).numpy())


def readers():
    """Returns the readers by name."""
    lib = transformers
    mpnet = ENCODER | {"relative_attention_num_buckets": 32}
    local = {"num_local_experts": 4}
    whole = {"num_experts": 4}
    qwen2 = EXPERTS | whole | {"moe_intermediate_size": 18, "shared_expert_intermediate_size": 22}
    qwen3 = EXPERTS | {"moe_intermediate_size": 18, "num_local_experts": 4, "head_dim": 8}
    types = {"layer_types": ["sliding_attention", "full_attention"]}
    sizes = {"head_dim": 8, "query_pre_attn_scalar": 20, "sliding_window": 3}
    gemma3: dict[str, object] = {**DECODER, **sizes, **types}
    granite = EXPERTS | local | {"attention_multiplier": 0.3, "logits_scaling": 2.0}
    return {
        "bert": Hub(lib.BertConfig, lib.BertModel, "embedding", ENCODER),
        "mpnet": Hub(lib.MPNetConfig, lib.MPNetModel, "embedding", mpnet),
        "vit": Hub(lib.ViTConfig, lib.ViTForImageClassification, "images", IMAGE),
        "deit": Hub(lib.DeiTConfig, lib.DeiTForImageClassification, "images", IMAGE),
        "deit-teacher": Hub(
            lib.DeiTConfig, lib.DeiTForImageClassificationWithTeacher, "images", IMAGE
        ),
        "llama": Hub(lib.LlamaConfig, lib.LlamaForCausalLM, "logits", DECODER),
        "gemma3_text": Hub(lib.Gemma3TextConfig, lib.Gemma3ForCausalLM, "logits", gemma3),
        "mixtral": Hub(lib.MixtralConfig, lib.MixtralForCausalLM, "logits", EXPERTS | local),
        "olmoe": Hub(lib.OlmoeConfig, lib.OlmoeForCausalLM, "logits", EXPERTS | whole),
        "qwen2_moe": Hub(lib.Qwen2MoeConfig, lib.Qwen2MoeForCausalLM, "logits", qwen2),
        "qwen3_moe": Hub(lib.Qwen3MoeConfig, lib.Qwen3MoeForCausalLM, "logits", qwen3),
        "granitemoe": Hub(lib.GraniteMoeConfig, lib.GraniteMoeForCausalLM, "logits", granite),
        "granitemoeshared": Hub(
            lib.GraniteMoeSharedConfig,
            lib.GraniteMoeSharedForCausalLM,
            "logits",
            granite | {"shared_intermediate_size": 14},
        ),
    }
