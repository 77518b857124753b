#!/usr/bin/env python3
"""Writes what PyTorch computes for plans of the family `fashion`, with networks really cut down.

A narrowed block is built from slices of the weights as a smaller block, a shortened network from
fewer blocks: nothing here knows of plans inside one set of weights. Whole anchors run in timm.

  python3 tools/train/reference.py --family models/fashion --out fashion.safetensors
  python3 tools/train/reference.py --family tests/pool/fashion --out \\
      tests/references/fashion.safetensors --new      a small family of random weights first
"""

import argparse
import json
import random
import tempfile
import tomllib
from pathlib import Path

import data
import supernet
import timm
import torch
import torch.nn.functional as F
import write
from place import place
from safetensors.torch import load_file, save
from timm.models.vision_transformer import VisionTransformer

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"s": (8, 1), "m": (16, 2), "l": (24, 3)}
DEPTH = 6
# Filled from the family's configurations.
WIDTHS, NARROW = {}, {}
IMAGES = 16
PLANS = 10


def main():
    """Writes images, plans and logits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=ROOT / ".tessera" / "data" / "fashion-mnist")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--new", action="store_true", help="make a small random family first")
    options = parser.parse_args()
    if options.new:
        small_family(options.family)
    manifest = tomllib.loads((options.family / "family.toml").read_text())
    for name in "sml":
        config = manifest["anchors"][name]["part"]["config"]
        config = json.loads((options.family / config).read_text())
        sizes = config["model_args"]
        WIDTHS[name] = (sizes["embed_dim"], sizes["num_heads"])
    width, heads = WIDTHS["l"]
    for name, share in [("", 1), ("w33", 1 / 3), ("w67", 2 / 3)]:
        NARROW[name] = (round(heads * share), round(4 * width * share))
    weights = load_file(options.family / manifest["stitches"]["file"])
    weights |= load_file(options.family / manifest["exits"]["file"])
    weights = {name: tensor.float() for name, tensor in weights.items()}
    images = data.load(options.data, "t10k")[0][:IMAGES]
    found = {"pixel_values": images}
    choice = random.Random(1)
    with torch.no_grad():
        for plan, segments, end in plans(choice):
            found[f"logits {plan}"] = run(weights, images, segments, end)
        for name in WIDTHS:
            found[f"logits {name}[0..6]"] = whole(weights, name, images)
    place(options.out, save(found, {"timm": timm.__version__}))


def small_family(folder):
    """Writes a family of random weights with the manifest of the trained one."""
    torch.manual_seed(0)
    sizes, counts = zip(*SMALL.values(), strict=True)
    net = supernet.Supernet(supernet.new(sizes, counts, DEPTH))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    manifest = (Path(__file__).parent / "family.toml").read_text().split("\n[[maps]]")[0]
    width, heads = SMALL["l"]
    for large, share in [("heads = 2, hidden = 256", 1 / 3), ("heads = 4, hidden = 512", 2 / 3)]:
        small = f"heads = {round(heads * share)}, hidden = {round(4 * width * share)}"
        manifest = manifest.replace(large, small)
    manifest = manifest.replace("floor = 0.86", "floor = 0.0").rstrip() + "\n"
    with tempfile.TemporaryDirectory() as out:
        torch.save({"model": net.state_dict()}, Path(out) / "joint.pt")
        (folder / "family.toml").unlink(missing_ok=True)
        write.write(Path(out), SMALL, DEPTH, folder, manifest)
    for name in ["README.md", "training.jsonl"]:
        (folder / name).unlink()


def whole(weights, name, images):
    """Runs an anchor as timm's own class."""
    width, heads = WIDTHS[name]
    model = VisionTransformer(
        img_size=28,
        patch_size=4,
        in_chans=1,
        num_classes=10,
        embed_dim=width,
        depth=DEPTH,
        num_heads=heads,
    )
    prefix = f"anchors.{list(WIDTHS).index(name)}."
    own = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
    model.load_state_dict(own)
    return model.eval()(images)


def plans(choice):
    """Draws plans of each kind: their ids, segments and how they end."""
    names = list(WIDTHS)
    pairs = supernet.paired(DEPTH)
    seen = set()
    while len(seen) < PLANS:
        first = choice.randrange(2)
        after, before, window = choice.choice(pairs)
        segments = [
            (first, 0, after + 1, [], None),
            (first + 1, before, DEPTH, [], (first, window)),
        ]
        if first == 0 and choice.random() < 0.5:
            after, before, window = choice.choice([p for p in pairs if p[0] >= segments[1][1]])
            segments[1] = (1, segments[1][1], after + 1, [], segments[1][4])
            segments.append((2, before, DEPTH, [], (1, window)))
        plan = ">".join(f"{names[s[0]]}[{s[1]}..{s[2]}]" for s in segments)
        seen.add(plan)
        yield plan, segments, "head"
    for is_shortened in [False, True]:
        for _ in range(PLANS):
            end = choice.randrange(2, DEPTH) if is_shortened else DEPTH
            widths, options = narrowed(choice, end)
            options += ["exit:head"] * is_shortened
            yield f"l[0..{end}]{{{','.join(options)}}}", [(2, 0, end, widths, None)], "head"
    seen = set()
    while len(seen) < PLANS:
        if choice.random() < 0.5:
            anchor, end = choice.randrange(3), choice.randrange(1, DEPTH)
            plan = f"{names[anchor]}[0..{end}]"
            segments = [(anchor, 0, end, [], None)]
        else:
            first, (after, before, window) = choice.randrange(2), choice.choice(pairs[:-4])
            end = choice.randrange(before + 1, DEPTH)
            plan = f"{names[first]}[0..{after + 1}]>{names[first + 1]}[{before}..{end}]"
            segments = [
                (first, 0, after + 1, [], None),
                (first + 1, before, end, [], (first, window)),
            ]
        seen.add(plan)
        yield plan, segments, "exit"


def narrowed(choice, end):
    """Draws a width for each sub-layer of each block, at least one of them narrow."""
    widths, options = [], []
    while not options:
        widths = [(choice.choice(list(NARROW)), choice.choice(list(NARROW))) for _ in range(end)]
        options = [
            f"{name}.{part}:{block}"
            for block, pair in enumerate(widths)
            for name, part in zip(pair, ("attn", "mlp"), strict=False)
            if name
        ]
    return widths, options


def run(weights, images, segments, end):
    """Runs one plan, building every block from slices of the weights."""
    tokens = None
    for anchor, begin, stop, widths, stitch in segments:
        if stitch:
            name = "stitch_layers.{}.{}.transform".format(*stitch)
            tokens = F.linear(tokens, weights[f"{name}.weight"], weights[f"{name}.bias"])
        else:
            tokens = stem(weights, anchor, images)
        for index in range(begin, stop):
            width = widths[index] if widths else ("", "")
            tokens = block(weights, anchor, index, tokens, width)
    anchor, stop = segments[-1][0], segments[-1][2]
    if end == "head":
        return norm_and_head(tokens[:, 0], weights, f"anchors.{anchor}.")
    pooled = torch.cat([tokens[:, 0], tokens.mean(1)], 1)
    return norm_and_head(pooled, weights, f"exits.{anchor}.{stop}.")


def stem(weights, anchor, images):
    """Patches, class token, positions."""
    own = {
        key.split(".", 2)[2]: value
        for key, value in weights.items()
        if key.startswith(f"anchors.{anchor}.")
    }
    patches = (
        F.conv2d(images, own["patch_embed.proj.weight"], own["patch_embed.proj.bias"], stride=4)
        .flatten(2)
        .transpose(1, 2)
    )
    first = own["cls_token"].expand(len(images), -1, -1)
    return torch.cat([first, patches], 1) + own["pos_embed"]


def block(weights, anchor, index, tokens, width):
    """One block whose smaller matrices are cut out of the whole ones."""

    def own(name):
        return weights[f"anchors.{anchor}.blocks.{index}.{name}"]

    total, all_heads = list(WIDTHS.values())[anchor]
    heads = NARROW[width[0]][0] if anchor == 2 else all_heads
    units = NARROW[width[1]][1] if anchor == 2 else 4 * total
    head_width = total // all_heads
    inner = heads * head_width
    small = torch.nn.MultiheadAttention(inner, heads, bias=True, batch_first=True)
    normed = F.layer_norm(tokens, (total,), own("norm1.weight"), own("norm1.bias"), 1e-6)
    parts = []
    for which in range(3):
        rows = slice(which * total, which * total + inner)
        parts.append(F.linear(normed, own("attn.qkv.weight")[rows], own("attn.qkv.bias")[rows]))
    # MultiheadAttention projects once more on both sides: with identities there, only its
    # attention is left.
    small.in_proj_weight.data = torch.eye(inner).repeat(3, 1)
    small.in_proj_bias.data.zero_()
    small.out_proj.weight.data, small.out_proj.bias.data = torch.eye(inner), torch.zeros(inner)
    mixed = small(*parts, need_weights=False)[0]
    projection = own("attn.proj.weight")[:, :inner]
    tokens = tokens + F.linear(mixed, projection, own("attn.proj.bias"))
    normed = F.layer_norm(tokens, (total,), own("norm2.weight"), own("norm2.bias"), 1e-6)
    expanded = F.gelu(F.linear(normed, own("mlp.fc1.weight")[:units], own("mlp.fc1.bias")[:units]))
    contract = own("mlp.fc2.weight")[:, :units]
    return tokens + F.linear(expanded, contract, own("mlp.fc2.bias"))


def norm_and_head(vector, weights, prefix):
    """A layer norm and a classifier."""
    vector = F.layer_norm(
        vector,
        vector.shape[-1:],
        weights[f"{prefix}norm.weight"],
        weights[f"{prefix}norm.bias"],
        1e-6,
    )
    return F.linear(vector, weights[f"{prefix}head.weight"], weights[f"{prefix}head.bias"])


if __name__ == "__main__":
    main()
