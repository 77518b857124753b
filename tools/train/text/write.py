#!/usr/bin/env python3
"""Writes the trained encoder as an anchor of the family `text`.

    .tessera/training/bin/python tools/train/text/write.py --out .tessera/train/text

The blocks go to `model.safetensors` in float16, in BERT's layout. The embeddings are
those of MiniLM-L6, which the manifest names as the anchor's base. Beside them lie the log of the
training and a digest of every file, for `family.toml`.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import encoder
import torch
from safetensors.torch import save

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from place import place

ROOT = Path(__file__).resolve().parents[3]


def main():
    """Writes the files and prints the digests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / ".tessera/train/text")
    parser.add_argument("--teacher", type=Path, default=ROOT / "models/text/anchors/l6")
    parser.add_argument("--to", type=Path, default=ROOT / "models/text/n6")
    options = parser.parse_args()
    state = torch.load(options.out / "checkpoint.pt", weights_only=False)
    network = encoder.load(options.teacher)
    network.load_state_dict(state["student"])
    halves = {name: tensor.half().contiguous() for name, tensor in encoder.give(network).items()}
    files = {
        "model.safetensors": save(halves, {"format": "pt"}),
        "config.json": (options.teacher / "config.json").read_bytes(),
        "training.jsonl": "".join(state["lines"]).encode(),
    }
    for name, content in files.items():
        place(options.to / name, content)
        print(f'"{options.to.name}/{name}" = "{hashlib.sha256(content).hexdigest()}"')


if __name__ == "__main__":
    main()
