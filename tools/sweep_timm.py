"""Readers of what timm saves: vision transformers of its constructors' arguments."""

import json
import shutil

import timm
import torch
from safetensors.torch import load_file, save_file
from sweep_changes import CONFIG, Space
from sweep_reference import Reference, Unreadable, draw_images, shake

ARGUMENTS = {
    "img_size": [12, 12],
    "patch_size": 4,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 5,
    "in_chans": 3,
    "global_pool": "token",
}
PRETRAINED = {
    "tag": "made_up",
    "custom_load": False,
    "input_size": [3, 12, 12],
    "fixed_input_size": True,
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "num_classes": 5,
    "pool_size": None,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
    "license": "apache-2.0",
}
ACTIVATIONS = [
    *("silu", "swish", "mish", "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu"),
    *("gelu_tanh", "quick_gelu", "sigmoid", "tanh", "hard_swish", "identity", "hardsigmoid"),
]
POOLS = ["token", "avg", "", "max", "avgmax", "map"]
VALUES = {
    "architecture": [
        *("deit_small_patch16_224", "deit3_small_patch16_224", "vit_base_patch16_224"),
        *("vit_base_patch16_clip_224", "vit_base_patch16_clip_quickgelu_224"),
        *("deit_tiny_distilled_patch16_224", "vit_small_patch16_rope_224", "resnet18"),
    ],
    "model_args": [],
    "pretrained_cfg": [],
    "num_classes": [7, 3],
    "model_args.img_size": [12, 16, [8, 12], 10],
    "model_args.patch_size": [2, [4, 4], [2, 4], 6],
    "model_args.embed_dim": [36, 20],
    "model_args.depth": [1, 3],
    "model_args.num_heads": [2, 6, 5],
    "model_args.num_classes": [4, 0],
    "model_args.in_chans": [1, 4],
    "model_args.global_pool": POOLS,
    "global_pool": POOLS,
    "pretrained_cfg.input_size": [[3, 16, 16], [1, 12, 12]],
    "pretrained_cfg.mean": [],
    "pretrained_cfg.std": [],
}
ADDED = {
    "labels": [["a", "b", "c", "d", "e"]],
    "label_names": [["a", "b", "c", "d", "e"]],
    "label_descriptions": [{"a": "A"}],
    "made_up": [3],
    "model_args.act_layer": ACTIVATIONS,
    "model_args.made_up": [3],
    "model_args.mlp_ratio": [2, 3.5],
    "model_args.qkv_bias": [False, True],
    "model_args.qk_norm": [True, False],
    "model_args.scale_attn_norm": [True],
    "model_args.scale_mlp_norm": [True],
    "model_args.proj_bias": [False, True],
    "model_args.init_values": [0.5, None],
    "model_args.class_token": [False, True],
    "model_args.pos_embed": ["learn", "none", ""],
    "model_args.no_embed_class": [True, False],
    "model_args.reg_tokens": [2, 0],
    "model_args.pre_norm": [True, False],
    "model_args.final_norm": [False, True],
    "model_args.fc_norm": [True, False],
    "model_args.pool_include_prefix": [True],
    "model_args.dynamic_img_size": [True],
    "model_args.dynamic_img_pad": [True],
    "model_args.drop_rate": [0.1],
    "model_args.pos_drop_rate": [0.1],
    "model_args.patch_drop_rate": [0.1],
    "model_args.proj_drop_rate": [0.1],
    "model_args.attn_drop_rate": [0.1],
    "model_args.drop_path_rate": [0.1],
    "model_args.weight_init": ["jax", "moco"],
    "model_args.fix_init": [True],
    "model_args.norm_layer": ["layernorm", "rmsnorm"],
    "model_args.embed_norm_layer": ["layernorm"],
    "model_args.attn_layer": ["diff", "attn"],
    "model_args.strict_img_size": [False],
    "model_args.use_naflex": [False],
    "model_args.ref_feat_shape": [[3, 3]],
    "pretrained_cfg.global_pool": POOLS,
    "pretrained_cfg.label_offset": [1],
    "pretrained_cfg.test_input_size": [[3, 16, 16]],
    "pretrained_cfg.made_up": [3],
    "pretrained_cfg.architecture": ["vit_small_patch16_224"],
}


class Timm:
    """A reader of timm's checkpoints of one architecture."""

    kind = "images"

    def __init__(self, architecture, arguments=None, values=None, added=None):
        arguments = ARGUMENTS | (arguments or {})
        arguments = {key: value for key, value in arguments.items() if value is not None}
        config = {
            "architecture": architecture,
            "num_classes": 5,
            "num_features": arguments["embed_dim"],
            "global_pool": "token",
            "model_args": arguments,
            "pretrained_cfg": PRETRAINED,
        }
        self.space = Space({CONFIG: config}, VALUES | (values or {}), added or {})

    def write(self, folder, files, base):
        """Writes a checkpoint of the configuration; returns what the library computes with it.

        With `base`, the tensors are those of that folder.
        """
        if base:
            shutil.copytree(base, folder, dirs_exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(files[CONFIG], indent=1))
        if not base:
            model = made(folder, is_trained=False)
            shake(model)
            state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
            save_file(state, folder / "model.safetensors")
        model = made(folder, is_trained=True)
        stored = load_file(folder / "model.safetensors")
        for name, tensor in model.state_dict().items():
            # The library leaves heads of other sizes out, and scales tables of positions.
            if name not in stored or ("head" in name and not torch.equal(tensor, stored[name])):
                raise Unreadable(f"`{name}` is left to chance")
        patches = model.patch_embed
        images = draw_images(3, [patches.proj.in_channels, *patches.img_size])
        try:
            with torch.inference_mode():
                return Reference({"pixel_values": images.numpy()}, model(images).numpy())
        except Exception as error:
            raise Unreadable(f"{type(error).__name__}: {error}") from error


def made(folder, is_trained):
    """Returns the model that timm makes of a folder."""
    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=is_trained).eval()
    except Exception as error:  # It fails in any way on values that it does not know.
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def readers():
    """Returns the readers by name."""
    names = timm.list_models(["vit_*", "deit_*", "deit3_*"])
    # Any number of heads of an architecture divides this width, but 14.
    wide = {"embed_dim": 240, "depth": 1, "num_heads": None, "global_pool": None}
    fixed: dict[str, list] = {f"model_args.{key}": [] for key in ARGUMENTS}
    fixed |= {f"pretrained_cfg.{key}": [] for key in PRETRAINED} | {"num_classes": []}
    return {
        "timm-vit": Timm("vit_tiny_patch16_224", added=ADDED),
        "timm-deit": Timm("deit_tiny_distilled_patch16_224", added=ADDED),
        "timm-deit3": Timm("deit3_small_patch16_224", added=ADDED),
        "timm-names": Timm(
            "vit_tiny_patch16_224",
            wide,
            fixed | {"architecture": names},
            {key: ADDED[key] for key in ("pretrained_cfg.global_pool", "model_args.act_layer")},
        ),
    }
