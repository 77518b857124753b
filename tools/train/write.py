"""Writes the trained network as files that the server reads.

`model.safetensors` has SN-Net's layout (`anchors.{a}.…` with timm's names, and
`stitch_layers.{pair}.{window}.transform.…`), `exits.safetensors` the exits; both in float16.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

import supernet

ARCHITECTURES = {"s": "vit_fashion_s", "m": "vit_fashion_m", "l": "vit_fashion_l"}


def load(out, anchors, depth):
    """Reads the trained network."""
    net = supernet.Supernet(supernet.new(*zip(*anchors.values()), depth))
    net.load_state_dict(torch.load(out / "joint.pt")["model"])
    return net.eval()


def write(out, anchors, depth, folder):
    """Writes weights, configurations, the training log and the model card, and puts their digests
    into the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    for source, name in [("family.toml", "family.toml"), ("model_card.md", "README.md")]:
        if not (folder / name).exists():
            shutil.copy(Path(__file__).parent / source, folder / name)
    state = load(out, anchors, depth).state_dict()
    halves = {name: tensor.half().contiguous() for name, tensor in state.items()}
    exits = {name: halves.pop(name) for name in list(halves) if name.startswith("exits.")}
    for part, name in [(halves, "model.safetensors"), (exits, "exits.safetensors")]:
        save_file(part, folder / name, {"format": "pt"})
        (folder / name).chmod(0o644)
    for name, (width, heads) in anchors.items():
        place = folder / "anchors" / name
        place.mkdir(parents=True, exist_ok=True)
        arguments = {"img_size": 28, "patch_size": 4, "in_chans": 1, "embed_dim": width,
                     "depth": depth, "num_heads": heads}
        config = {"architecture": ARCHITECTURES[name], "num_classes": 10,
                  "model_args": arguments}
        (place / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    log = folder / "training.jsonl"
    logs = sorted(out.glob("*.jsonl"))
    log.write_text("".join(path.read_text() for path in logs))
    sign(folder)


def sign(folder):
    """Replaces every digest in the manifest by that of the file beside its key."""
    manifest = folder / "family.toml"
    text = manifest.read_text()

    def digest(path):
        return hashlib.sha256((folder / path).read_bytes()).hexdigest()

    text = re.sub(r'^"([^"]+)" = "[0-9a-f]*"$',
                  lambda m: f'"{m[1]}" = "{digest(m[1])}"', text, flags=re.M)
    text = re.sub(r'^file = "([^"]+)"\nsha256 = "[0-9a-f]*"$',
                  lambda m: f'file = "{m[1]}"\nsha256 = "{digest(m[1])}"', text, flags=re.M)
    temporary = manifest.with_suffix(".tmp")
    temporary.write_text(text)
    shutil.move(temporary, manifest)
