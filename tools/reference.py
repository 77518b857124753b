#!/usr/bin/env python3
"""Writes the reference outputs against which the `text` family's anchors are tested.

Runs the anchors in the libraries they come from (Hugging Face transformers, ONNX Runtime on the
original export) over a few texts and stores tokens, inner activations and embeddings, a file each.

    python3 -m venv venv && venv/bin/pip install torch==2.15.0 transformers==5.23.0 \
        tokenizers==0.23.3 onnxruntime==1.32.0 safetensors==0.8.0 numpy==2.4.6
    venv/bin/python tools/reference.py --pool models --out tests/references

An anchor is a folder with `model.safetensors` or, as exported, `model.onnx`; one without a
tokenizer takes that of `l6`, whose vocabulary it shares.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from transformers import AutoModel

MAX_TOKENS = 128
NUM_TRACED = 2
"""Texts of which the activations after the stem and after every block are stored."""

TEXTS = [
    "Rain.",
    "The ferry leaves at half past six, and it never waits.",
    "How do I get a refund for a ticket that I bought twice by mistake?",
    "Ein Käsebrötchen und zwei Tassen Kaffee, bitte – naïve café, señor, Ωμέγα, 東京の天気。",
    'fn main() { let xs: Vec<u32> = (0..10).map(|x| x * x).collect(); println!("{xs:?}"); }',
    "Prices: $1,299.00 (was $1,499.95) -- 13% off!!!"
    " Visit http://shop.example/?id=42&ref=a_b.c 🚀🙂",
    "A committee of three engineers looked at the old bridge for a week. They measured how far it"
    " bent under a loaded truck, took paint from the girders to see what was beneath it, and wrote"
    " down every bolt that had come loose. In the end they said that it would stand for ten"
    " more years.",
    " ".join(
        f"Chapter {number}: the {colour} lighthouse keeper counts {number * 7} ships and writes"
        " each name into a book that nobody has ever asked to read."
        for number, colour in enumerate(["red", "grey", "white", "amber", "green", "black"], 1)
    ),
]


def tokenize(folder):
    """Returns ids and mask of all texts, cut to `MAX_TOKENS` and padded to the longest.

    # Shapes
    - both: [texts, tokens] int64
    """
    if not (folder / "tokenizer.json").exists():
        folder = folder.parent / "l6"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    encodings = [tokenizer.encode(text) for text in TEXTS]
    num_tokens = max(len(encoding.ids) for encoding in encodings)
    padding_id = json.loads((folder / "config.json").read_text())["pad_token_id"]
    ids = np.full((len(TEXTS), num_tokens), padding_id, np.int64)
    mask = np.zeros_like(ids)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = encoding.ids
        mask[row, : len(encoding.ids)] = 1
    return ids, mask


def embed(hidden, mask):
    """Returns the mean over the tokens that are no padding, scaled to length one.

    # Shapes
    - hidden: [texts, tokens, width]
    - result: [texts, width] f32
    """
    weights = mask[:, :, None].astype(np.float32)
    mean = (hidden * weights).sum(1) / weights.sum(1)
    return (mean / np.linalg.norm(mean, axis=1, keepdims=True)).astype(np.float32)


def run_transformers(folder, ids, mask):
    """Runs a safetensors anchor; returns the activations after the stem and after every block."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        output = model.eval()(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            output_hidden_states=True,
        )
    return [hidden.numpy() for hidden in output.hidden_states]


def run_onnx(path, ids, mask):
    """Runs an exported sentence encoder; returns its activations after the last block."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"input_ids": ids, "attention_mask": mask})
    return next(output for output in outputs if output.ndim == 3)


def trace(activations, mask):
    """Returns the activations of the first texts without padding, by name."""
    return {
        f"text{row}.space{space}": np.ascontiguousarray(hidden[row, : mask[row].sum()])
        for row in range(NUM_TRACED)
        for space, hidden in enumerate(activations)
    }


def write(path, tensors):
    """Writes a safetensors file, so that it is there whole or not at all."""
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.chmod(0o644)
    os.replace(partial, path)


def write_references(anchor, out):
    """Writes the references of one anchor folder."""
    ids, mask = tokenize(anchor)
    tensors = {"input_ids": ids, "attention_mask": mask}
    if (anchor / "model.onnx").exists():
        hidden = run_onnx(anchor / "model.onnx", ids, mask)
    else:
        activations = run_transformers(anchor, ids, mask)
        hidden = activations[-1]
        tensors |= trace(activations, mask)
    tensors["embeddings"] = embed(hidden, mask)
    write(out / f"{anchor.name}.safetensors", tensors)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pool", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    texts = json.dumps(TEXTS, ensure_ascii=False, indent=1)
    (arguments.out / "texts.json").write_text(texts + "\n", encoding="utf-8")
    for anchor in sorted((arguments.pool / "text" / "anchors").iterdir()):
        write_references(anchor, arguments.out)
        print(f"wrote {anchor.name}.safetensors")


if __name__ == "__main__":
    main()
