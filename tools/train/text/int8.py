#!/usr/bin/env python3
"""Simulates int8 forms of MiniLM-L6 in floats, and prints what each costs in recall.

    .tessera/training/bin/python tools/train/text/int8.py

Weights have a scale for each output; activations a scale for each row, as the server has them, or
another form. Recall@10 against the network in f32, on 400 texts of each corpus.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import encoder
import train

DATA = train.ROOT / ".tessera/data"
CORPORA = {
    "dictionary": DATA / "heldout/dictionary.jsonl",
    "mails": DATA / "mails/mails.jsonl",
}
CALIBRATION = DATA / "mails/calibration.jsonl"
PRODUCTS = ("qkv", "out", "expand", "contract")
SMOOTHING = 0.5


def symmetric(values):
    """Rows at 127 levels each way of their largest value."""
    scale = values.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (values / scale).round() * scale


def between(values):
    """Rows at 255 levels between their least and their largest value."""
    least = values.amin(-1, keepdim=True).clamp(max=0)
    scale = (values.amax(-1, keepdim=True).clamp(min=0) - least).clamp(min=1e-12) / 255
    zero = (-least / scale).round()
    return ((values / scale).round() + zero).clamp(0, 255).sub(zero) * scale


class Int8:
    """Network whose products are int8's: the form of the activations of each kind of product, and
    the scale of each channel by block and kind."""

    def __init__(self, network, forms, has_weights=True, channels=None):
        self.network, self.forms, self.has_weights = network, forms, has_weights
        self.channels = channels or {}

    def product(self, rows, layer, block, kind):
        """Returns a layer's outputs."""
        weight, scale = layer.weight, self.channels.get((block, kind))
        if scale is not None:
            rows, weight = rows / scale, weight * scale
        if self.has_weights:
            weight = symmetric(weight)
        if kind in self.forms:
            rows = self.forms[kind](rows)
        return F.linear(rows, weight, layer.bias)

    def __call__(self, ids, mask, seen=None):
        """Returns the vectors of texts, and adds the products' inputs to `seen`."""
        bias, states = mask.clamp(min=1e-9).log()[:, None, None, :], self.network.stem(ids)
        batch, length, width = states.shape
        for index, block in enumerate(self.network.blocks):

            def run(kind, rows, index=index, block=block):
                if seen is not None:
                    seen.setdefault((index, kind), []).append(rows[mask.bool()])
                return self.product(rows, getattr(block, kind), index, kind)

            parts = run("qkv", states).view(batch, length, 3, width // encoder.HEAD, encoder.HEAD)
            query, key, value = parts.permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
            mixed = mixed.transpose(1, 2).reshape(batch, length, width)
            states = block.attention_norm(states + run("out", mixed))
            states = block.norm(states + run("contract", F.gelu(run("expand", states))))
        return encoder.pooled(states, mask)


def smooth(network, batches):
    """Returns for each product the scales of its channels that divide its activations' largest
    values between them and the weights (SmoothQuant, ICML 2023)."""
    seen = {}
    for ids, mask in batches:
        Int8(network, {}, has_weights=False)(ids, mask, seen)
    scales = {}
    for (block, kind), rows in seen.items():
        largest = torch.cat(rows).abs().amax(0)
        weight = getattr(network.blocks[block], kind).weight.abs().amax(0)
        scale = largest**SMOOTHING / weight ** (1 - SMOOTHING)
        scales[block, kind] = scale / scale.mean()
    return scales


@torch.no_grad()
def main():
    """Prints a line for each form."""
    teacher = train.ROOT / "models/text/anchors/l6"
    network = encoder.load(teacher).eval()
    tokenizer = Tokenizer.from_file(str(teacher / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    corpora = {name: train.watch(path, tokenizer) for name, path in CORPORA.items()}
    scales = smooth(network, train.watch(CALIBRATION, tokenizer))
    rows, ranges = dict.fromkeys(PRODUCTS, symmetric), dict.fromkeys(PRODUCTS, between)
    forms = {
        "a scale for each row": Int8(network, rows),
        "weights alone": Int8(network, {}),
        **{
            f"activations of {kind} alone": Int8(network, {kind: symmetric}, has_weights=False)
            for kind in PRODUCTS
        },
        "a scale and a zero for each row": Int8(network, ranges),
        "a scale for each row and channel": Int8(network, rows, channels=scales),
        "a scale and a zero for each row, a scale for each channel": Int8(
            network, ranges, channels=scales
        ),
    }
    taught = {name: train.outputs_of(network, batches, None) for name, batches in corpora.items()}
    for name, form in forms.items():
        found = {
            corpus: train.recall(torch.cat([form(*batch) for batch in batches]), taught[corpus])
            for corpus, batches in corpora.items()
        }
        print(name, *(f"{corpus} {value:.3f}" for corpus, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
