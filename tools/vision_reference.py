#!/usr/bin/env python3
"""Writes small vision transformers as timm and transformers make them, with what they compute.

Each goes to tests/references/vit/NAME: config.json, model.safetensors and expected.safetensors
(pixel_values and logits). `snnet` holds what SN-Net's rule gives for DeiT-Ti and DeiT-S shapes,
whose weights the test makes by the same formula as `formula` here.

  python3 tools/vision_reference.py --out tests/references/vit
"""

import argparse
import json
import sys
from pathlib import Path

import numpy
import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

sys.path.insert(0, str(Path(__file__).parent / "train"))
from supernet import paired

SMALL = {
    "img_size": 12,
    "patch_size": 4,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 5,
}
HUB = {
    "image_size": 12,
    "patch_size": 4,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "num_labels": 5,
}
SNNET_PAIRS = [(0, 0), (0, 1), (4, 3), (10, 11), (11, 11)]


def main():
    """Writes every case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.manual_seed(0)
    timm_case(out / "timm", VisionTransformer(**SMALL), "vit_test")
    distilled = VisionTransformerDistilled(**SMALL)
    timm_case(out / "timm-distilled", distilled, "deit_test_distilled")
    scaled = VisionTransformer(**SMALL, init_values=0.5, no_embed_class=True)
    timm_case(out / "timm-deit3", scaled, "deit3_test")
    hub = transformers
    hub_case(out / "hf-vit", hub.ViTForImageClassification(hub.ViTConfig(**HUB)))
    hub_case(out / "hf-deit", hub.DeiTForImageClassification(hub.DeiTConfig(**HUB)))
    taught = hub.DeiTForImageClassificationWithTeacher(hub.DeiTConfig(**HUB))
    hub_case(out / "hf-deit-teacher", taught)
    mean = {"global_pool": "avg"}
    timm_case(out / "timm-mean", VisionTransformer(**SMALL, **mean), "vit_test", mean)
    normed = VisionTransformer(**SMALL, **mean, fc_norm=False)
    timm_case(out / "timm-mean-of-normed", normed, "vit_test", mean | {"fc_norm": False})
    for name in ["quick_gelu", "gelu_tanh", "silu", "relu"]:
        other = {"act_layer": name}
        timm_case(out / f"timm-{name}", VisionTransformer(**SMALL, **other), "vit_test", other)
    snnet(out / "snnet")


def timm_case(folder, model, architecture, others=None):
    """Saves a model of timm, made with `others` besides the sizes."""
    arguments = {key: value for key, value in SMALL.items() if key != "num_classes"}
    arguments |= others or {}
    config = {"architecture": architecture, "num_classes": 5, "model_args": arguments}
    shake(model)
    save(folder, config, model.eval(), lambda images: model(images))


def hub_case(folder, model):
    """Saves a model of transformers, whose files have other names than its parameters."""
    shake(model)
    model.eval().save_pretrained(folder)
    expect(folder, lambda images: model(pixel_values=images).logits)


def shake(model):
    """Makes every parameter matter: initial values are too small, or all alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))


def save(folder, config, model, run):
    """Writes a checkpoint and what it computes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    expect(folder, run)


def expect(folder, run):
    """Writes what a network computes."""
    images = torch.randn(3, 3, 12, 12)
    with torch.no_grad():
        expected = {"pixel_values": images, "logits": run(images)}
    save_file(expected, folder / "expected.safetensors", {"timm": timm.__version__})


def formula(name, shape):
    """Weights that any language can make: a hash of name and position, scaled by the inputs."""
    seed = 2166136261
    for byte in name.encode():
        seed = ((seed ^ byte) * 16777619) & 0xFFFFFFFF
    count = int(numpy.prod(shape))
    values = numpy.arange(count, dtype=numpy.uint64) * 2654435761 + seed
    values ^= values >> numpy.uint64(15)
    values = (values * 2246822519) & 0xFFFFFFFF
    values ^= values >> numpy.uint64(13)
    values = (values.astype(numpy.float64) / 2**32 - 0.5).astype(numpy.float32)
    fan_in = int(numpy.prod(shape[1:])) if len(shape) > 1 else 1
    scale = numpy.float32(2 / numpy.sqrt(fan_in)) if len(shape) > 1 else numpy.float32(0.2)
    values = values * scale + numpy.float32("norm" in name and name.endswith("weight"))
    return torch.from_numpy(values.reshape(shape))


def snnet(folder):
    """Runs paths through DeiT-Ti and DeiT-S as SN-Net v1 does: stitched ones without the norm."""
    anchors = []
    for number, (width, heads) in enumerate([(192, 3), (384, 6)]):
        model = VisionTransformer(embed_dim=width, depth=12, num_heads=heads).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(formula(f"anchors.{number}.{name}", tuple(parameter.shape)))
        anchors.append(model)
    images = formula("pixel_values", (1, 3, 224, 224)) * 20
    expected = {}
    with torch.no_grad():
        expected["logits a[0..12]"] = anchors[0](images)
        expected["logits b[0..12]"] = anchors[1](images)
        for after, before in SNNET_PAIRS:
            window = next(w for a, b, w in paired(12) if (a, b) == (after, before))
            name = f"stitch_layers.0.{window}.transform"
            weight, bias = formula(f"{name}.weight", (384, 192)), formula(f"{name}.bias", (384,))
            tokens = anchors[0].patch_embed(images)
            tokens = anchors[0]._pos_embed(tokens)
            for block in anchors[0].blocks[: after + 1]:
                tokens = block(tokens)
            tokens = torch.nn.functional.linear(tokens, weight, bias)
            for block in anchors[1].blocks[before:]:
                tokens = block(tokens)
            logits = anchors[1].head(tokens[:, 0])
            expected[f"logits a[0..{after + 1}]>b[{before}..12]"] = logits
    folder.mkdir(parents=True, exist_ok=True)
    save_file(expected, folder / "expected.safetensors", {"timm": timm.__version__})


if __name__ == "__main__":
    main()
