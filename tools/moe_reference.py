#!/usr/bin/env python3
"""Writes small random mixture-of-experts language models, with what they compute.

Each goes to OUT/CASE: config.json, weights as Hugging Face transformers stores them, and
reference.safetensors, computed in f32 on the CPU from the weights as they lie on disk:

  input_ids, attention_mask  int64 [2, tokens], padded on the right with token 0
  last_hidden_state          f32 [2, tokens, width], after the last norm; 0 where padded
  logits                     f32 [2, tokens, vocabulary]; 0 where padded

`moe_cases.py` says what there is, `moe_hub.py` under which names transformers stores it. transformers
has no ModuleFormer (MoLM): `moe_moduleformer.py` computes it from the formulas.

  python3 tools/moe_reference.py --out tests/references/moe
"""

import argparse
import shutil
from pathlib import Path

import numpy
import torch
from moe_cases import CASES
from moe_hub import Hub, write_hub
from moe_moduleformer import ModuleFormer, write_moduleformer
from safetensors.numpy import save_file
from transformers.utils import logging

MIN_MARGIN = 1e-3
"""Least difference of the last chosen expert's probability and that of the next."""
NUM_CANDIDATES = 2000
"""Texts among which those with the widest margins are sought."""
NUM_AT_ONCE = 250


def main():
    """Writes the cases that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", choices=CASES, metavar="CASE", help=", ".join(CASES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for name in [arguments.only] if arguments.only else CASES:
        folder = arguments.out / name
        shutil.rmtree(folder, ignore_errors=True)
        margin = write_case(folder, CASES[name])
        for path in folder.iterdir():
            path.chmod(0o644)
        num_bytes = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{name}: {num_bytes} bytes, router margin {margin:.1e}")


def write_case(folder, case):
    """Writes a checkpoint and its reference; returns the least margin of its routers."""
    if case.config["model_type"] == "moduleformer":
        write_moduleformer(folder, case)
        run: ModuleFormer | Hub = ModuleFormer(folder)
    else:
        run = Hub(folder, write_hub(folder, case))
    return write_reference(folder / "reference.safetensors", run, case)


def write_reference(path, run, case):
    """Writes what a network computes for texts on which its routers are decided."""
    ids = choose_texts(run, case)
    mask = numpy.zeros_like(ids)
    for row, length in enumerate(case.lengths):
        mask[row, :length] = 1
    ids *= mask
    hidden, logits, routers = run(ids, mask)
    assert 0.3 < logits[mask == 1].std() < 10, logits[mask == 1].std()
    for probabilities, num_chosen in routers:
        chosen = numpy.argsort(-probabilities[mask == 1], -1)[:, :num_chosen]
        assert len(numpy.unique(chosen)) > num_chosen, "all tokens take the same experts"
    margin = margins(routers)[mask == 1].min()
    assert margin > MIN_MARGIN, margin
    save_file(
        {
            "input_ids": ids,
            "attention_mask": mask,
            "last_hidden_state": (hidden * mask[:, :, None]).astype(numpy.float32),
            "logits": (logits * mask[:, :, None]).astype(numpy.float32),
        },
        path,
    )
    return margin


def choose_texts(run, case):
    """Returns the texts, out of random ones, whose least router margin is widest."""
    num_tokens = max(case.lengths)
    random = numpy.random.default_rng(case.seed)
    texts = random.integers(1, case.config["vocab_size"], (NUM_CANDIDATES, num_tokens))
    parts = numpy.split(texts, NUM_CANDIDATES // NUM_AT_ONCE)
    margin = numpy.concatenate([margins(run(part, numpy.ones_like(part))[2]) for part in parts])
    rows = []
    for length in case.lengths:
        least = margin[:, :length].min(1)
        least[rows] = 0
        rows.append(int(least.argmax()))
    return texts[rows]


def margins(routers):
    """Returns the least margin over all routers, by row and token."""
    least = []
    for probabilities, num_chosen in routers:
        ordered = -numpy.sort(-probabilities, -1)
        least.append(ordered[..., num_chosen - 1] - ordered[..., num_chosen])
    return numpy.min(least, 0)


if __name__ == "__main__":
    main()
