#!/usr/bin/env python3
"""Writes what the training's own network says in forms that no library has, for tests of encoders.

    .tessera/training/bin/python tools/train/text/reference.py --anchor models/text/anchors/l6 \
        --texts tests/references/l6.safetensors --out tests/references/l6-forms.safetensors

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

WHOLE, NARROW = [(12, 1536)] * 6, [(8, 1024)] * 6
FORMS = {
    "narrow": encoder.Form(NARROW),
    "mixed": encoder.Form([(4, 512), (12, 1536), (8, 1024)] * 2),
    "merged 4 before 2": encoder.Form(WHOLE, merged={2: 4}),
    "merged 2 before 1": encoder.Form(WHOLE, merged={1: 2}),
    "merged 3 before 0, narrow": encoder.Form(NARROW, merged={0: 3}),
}


@torch.no_grad()
def main():
    """Writes an output for each form, [texts, width]."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--anchor", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    texts = load_file(options.texts)
    network = encoder.load(options.anchor)
    ids, mask = texts["input_ids"], texts["attention_mask"].float()
    outputs = {name: network(ids, mask, form) for name, form in FORMS.items()}
    whole = network(ids, mask)
    print("whole, against the reference:", (whole - texts["embeddings"]).abs().max().item())
    place(options.out, save(outputs))


if __name__ == "__main__":
    main()
