"""Writes the trained network as files that the server reads.

`model.safetensors` has SN-Net's layout (`anchors.{a}.…` with timm's names, and
`stitch_layers.{pair}.{window}.transform.…`), `exits.safetensors` the exits, `tiny.safetensors` the
anchor `t`; all in float16.
"""

import json
from pathlib import Path

import supernet
import torch
from place import Writer, place
from safetensors.torch import load_file, save


def load(out, anchors, depth, folder=None):
    """Reads the network that was trained in `out`, or else the one that lies in `folder`."""
    widths, heads = zip(*anchors.values(), strict=True)
    net = supernet.Supernet(supernet.new(widths, heads, depth))
    if (out / "joint.pt").exists() or folder is None:
        net.load_state_dict(torch.load(out / "joint.pt")["model"])
    else:
        parts = [load_file(folder / name) for name in ("model.safetensors", "exits.safetensors")]
        net.load_state_dict(parts[0] | parts[1])
    return net.eval()


def write(out, anchors, depth, folder, manifest=None, tiny=None):
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
            add_config(writer, name, (width, heads, depth, 4))
        if tiny:
            add_tiny(writer, out, tiny)
        writer.commit()
        logs = sorted(out.glob("*.jsonl"))
        place(folder / "training.jsonl", b"".join(path.read_bytes() for path in logs))
        if not (folder / "README.md").exists():
            place(folder / "README.md", (here / "model_card.md").read_bytes())


def write_tiny(out, tiny, folder):
    """Writes the anchor `t` beside the others, and puts it in use."""
    with Writer(folder, (Path(__file__).parent / "family.toml").read_text()) as writer:
        add_tiny(writer, out, tiny)
        writer.commit()
        log = folder / "training.jsonl"
        others = [line for line in log.read_text().splitlines(True) if '"anchor-t-' not in line]
        place(log, ("".join(others) + (out / "anchor-t-1.jsonl").read_text()).encode())


def add_tiny(writer, out, tiny):
    """Adds the files of the anchor `t`."""
    state = torch.load(out / "anchor-t-1.pt")["model"]
    halves = {f"t.{name}": tensor.half().contiguous() for name, tensor in state.items()}
    writer.add("tiny.safetensors", save(halves, {"format": "pt"}))
    add_config(writer, "t", tiny)


def add_config(writer, name, sizes):
    """Adds the configuration of an anchor: its width, heads, blocks and pixels of a patch's side."""
    width, heads, depth, patch = sizes
    arguments = {
        "img_size": 28,
        "patch_size": patch,
        "in_chans": 1,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
    }
    config = {
        "architecture": f"vit_fashion_{name}",
        "num_classes": 10,
        "model_args": arguments,
    }
    writer.add(f"anchors/{name}/config.json", (json.dumps(config, indent=2) + "\n").encode())
