"""Writes the trained network as files that the server reads.

`model.safetensors` has SN-Net's layout (`anchors.{a}.…` with timm's names, and
`stitch_layers.{pair}.{window}.transform.…`), `exits.safetensors` the exits; both in float16.
"""

import json
from pathlib import Path

import supernet
import torch
from place import Writer, place
from safetensors.torch import save

ARCHITECTURES = {"s": "vit_fashion_s", "m": "vit_fashion_m", "l": "vit_fashion_l"}


def load(out, anchors, depth):
    """Reads the trained network."""
    widths, heads = zip(*anchors.values(), strict=True)
    net = supernet.Supernet(supernet.new(widths, heads, depth))
    net.load_state_dict(torch.load(out / "joint.pt")["model"])
    return net.eval()


def write(out, anchors, depth, folder, manifest=None):
    """Writes weights and configurations, and puts them in use by the manifest that names them; then
    the training log and the model card. `manifest` is the text where the folder has none."""
    here = Path(__file__).parent
    manifest = manifest or (here / "family.toml").read_text()
    state = load(out, anchors, depth).state_dict()
    halves = {name: tensor.half().contiguous() for name, tensor in state.items()}
    exits = {name: halves.pop(name) for name in list(halves) if name.startswith("exits.")}
    with Writer(folder, manifest) as writer:
        for part, name in [(halves, "model.safetensors"), (exits, "exits.safetensors")]:
            writer.add(name, save(part, {"format": "pt"}))
        for name, (width, heads) in anchors.items():
            arguments = {
                "img_size": 28,
                "patch_size": 4,
                "in_chans": 1,
                "embed_dim": width,
                "depth": depth,
                "num_heads": heads,
            }
            config = {
                "architecture": ARCHITECTURES[name],
                "num_classes": 10,
                "model_args": arguments,
            }
            writer.add(
                f"anchors/{name}/config.json", (json.dumps(config, indent=2) + "\n").encode()
            )
        writer.commit()
        logs = sorted(out.glob("*.jsonl"))
        place(folder / "training.jsonl", b"".join(path.read_bytes() for path in logs))
        if not (folder / "README.md").exists():
            place(folder / "README.md", (here / "model_card.md").read_bytes())
