#!/usr/bin/env python3
"""Writes what the training's own network says with narrower blocks, for the tests of encoders.

    .tessera/training/bin/python tools/train/text/reference.py --anchor models/text/anchors/l6 \
        --texts tests/references/l6.safetensors --out tests/references/l6-narrow.safetensors

The texts are those of another reference, by their tokens. The blocks are MiniLM-L6's as they are,
which are not trained for this: only the computation is compared.
"""

import argparse
import sys
from pathlib import Path

import encoder
import torch
from safetensors.torch import load_file, save

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from place import place

WIDTHS = {"narrow": [(8, 1024)] * 6, "mixed": [(4, 512), (12, 1536), (8, 1024)] * 2}


@torch.no_grad()
def main():
    """Writes an output for each choice of widths, [texts, width]."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--anchor", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    texts = load_file(options.texts)
    network = encoder.load(options.anchor)
    ids, mask = texts["input_ids"], texts["attention_mask"].float()
    outputs = {name: network(ids, mask, encoder.Form(widths)) for name, widths in WIDTHS.items()}
    whole = network(ids, mask)
    print("whole, against the reference:", (whole - texts["embeddings"]).abs().max().item())
    place(options.out, save(outputs))


if __name__ == "__main__":
    main()
