#!/usr/bin/env python3
"""Trains the text encoders for assembly: sub-networks of one network.

  python3 tools/train/text/train.py --texts .tessera/data/texts.jsonl --steps 2200

It starts from all-MiniLM-L6-v2 and learns to say what that network says, on texts without labels.
The recipe `nested` makes `n6`: each depth, width and share of tokens. A step runs the whole network,
the smallest one and one drawn at random (the sandwich rule of slimmable networks, ICCV 2019). The
recipe `merged` makes `m6`: all blocks in int8, on fewer tokens in the later ones. The loss is the
distance to the teacher's vectors, to the last states of its tokens and, in a batch, to its
similarities. After a kill it goes on from the last checkpoint to the same numbers. The rate of `nested`
falls in the last fifth of the steps alone, so that `--steps` may grow.
"""

import argparse
import io
import json
import random
import sys
import time
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import encoder
from place import place

ROOT = Path(__file__).resolve().parents[3]
WIDTHS = ((12, 1536), (12, 1024))
DEPTH = 6
# Blocks in the order in which shorter networks lack them; what it costs to leave one out decided.
DROPPED_FIRST = (2, 3, 1)
LENGTHS = (16, 32, 64, 128)
MOST_ROWS = 160
KINDS = {
    "guides": 0.2,
    "help": 0.1,
    "manuals": 0.1,
    "literature": 0.15,
    "glosses": 0.25,
    "dialogue": 0.06,
    "mails": 0.14,
}
# Kind of texts that do not say theirs.
UNNAMED = "mails"
# Rate of each recipe, and the share of the steps at the end in which it falls. A network that is near
# its teacher loses more by a high one than it learns: after 400 steps at a constant 2e-4, `merged` was
# .04 behind what it is untrained.
RATES = {"nested": (3e-4, 0.2), "merged": (1e-4, 1.0)}
WARMUP = 100
TEMPERATURE = 0.05
SKIPPED = 0.06
# Before which blocks the recipe `merged` merges one token in how many, and how often it does so.
MERGED = {
    ((3, 2),): 5,
    ((4, 3),): 3,
    ((4, 2),): 2,
    ((3, 3),): 2,
    ((2, 2),): 1,
    ((3, 2), (5, 2)): 1,
}
# Share of the steps without a part of a block.
MERGED_SKIPPED = 0.1
# Before which block the smallest network merges one token in how many; others merge anywhere.
MERGED_MOST = {1: 2}
MERGING = 0.6
# A small network that is far from its teacher does not outweigh the whole one, which is near.
NEAR = 0.3
# Weight of the distance between the states of tokens, as a share of the teacher's.
STATES = 10.0
# The whole network, which is near, sees one row in so many.
SHARE_OF_WHOLE = 3
EVERY = 50
WATCHED = 400


def parse():
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, required=True, nargs="+")
    parser.add_argument("--watch", type=Path, nargs="*", default=[], help="texts of other kinds")
    parser.add_argument("--teacher", type=Path, default=ROOT / "models/text/anchors/l6")
    parser.add_argument("--out", type=Path, default=ROOT / ".tessera/train/text")
    parser.add_argument("--recipe", choices=("nested", "merged"), default="nested")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--tokens", type=int, default=6144, help="tokens of a step")
    parser.add_argument("--until", type=int, help="stop after this step, to go on later")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-sandwich", action="store_true", help="ablation: random forms alone")
    parser.add_argument("--no-relations", action="store_true", help="ablation: vectors alone")
    return parser.parse_args()


class Texts:
    """Token ids of paragraphs by kind, in the order of their documents."""

    def __init__(self, paths, tokenizer, cache, tokens):
        self.kinds, self.tokens = {}, tokens
        for path in paths:
            self.read(path, tokenizer, cache)

    def read(self, path, tokenizer, cache):
        """Tokenizes a file, or reads what was tokenized."""
        stored = cache / f"{path.stem}.npz"
        if not stored.exists() or stored.stat().st_mtime < path.stat().st_mtime:
            self.tokenize(path, tokenizer, stored)
        arrays = numpy.load(stored)
        for kind in {name.split("/")[0] for name in arrays.files}:
            parts = [arrays[f"{kind}/{part}"] for part in ("ids", "ends", "documents")]
            self.kinds[kind] = parts

    def tokenize(self, path, tokenizer, stored):
        """Writes the ids of all paragraphs, where each ends, and a number for its document."""
        rows = [json.loads(line) for line in path.open()]
        arrays = {}
        for kind in sorted({row.get("kind", UNNAMED) for row in rows}):
            own = [row for row in rows if row.get("kind", UNNAMED) == kind]
            encoded = tokenizer.encode_batch([r["text"] for r in own], add_special_tokens=False)
            ids = [numpy.array(e.ids[:126], numpy.uint16) for e in encoded]
            names = [row.get("document", row.get("id")) for row in own]
            numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
            arrays[f"{kind}/ids"] = numpy.concatenate(ids)
            arrays[f"{kind}/ends"] = numpy.cumsum([len(part) for part in ids])
            arrays[f"{kind}/documents"] = numpy.array([numbers[name] for name in names])
        content = io.BytesIO()
        numpy.savez(content, **arrays)
        place(stored, content.getvalue())

    def passage(self, kind, length, generator):
        """Returns the ids of a paragraph, and now and then of those after it, of `length` at most."""
        ids, ends, documents = self.kinds[kind]
        first = last = generator.randrange(len(ends))
        start = ends[first - 1] if first else 0
        while ends[last] - start < length - 2 and last + 1 < len(ends):
            if documents[last + 1] != documents[first] or generator.random() < 0.4:
                break
            last += 1
        return ids[start : min(ends[last], start + length - 2)]

    def batch(self, generator):
        """Returns ids and mask, [rows, length], of one kind or of all."""
        length = generator.choice(LENGTHS)
        kinds = [kind for kind in KINDS if kind in self.kinds]
        weights = [KINDS[kind] for kind in kinds]
        one = generator.choices(kinds, weights)[0] if generator.random() < 0.6 else None
        rows = min(MOST_ROWS, self.tokens // length)
        passages = [
            self.passage(one or generator.choices(kinds, weights)[0], length, generator)
            for _ in range(rows)
        ]
        return padded(passages)


def padded(passages):
    """Returns ids and mask of passages with `[CLS]` and `[SEP]` around them."""
    length = max(map(len, passages)) + 2
    ids = torch.zeros(len(passages), length, dtype=torch.long)
    mask = torch.zeros(len(passages), length)
    for row, passage in enumerate(passages):
        ids[row, 0], ids[row, len(passage) + 1] = 101, 102
        ids[row, 1 : len(passage) + 1] = torch.from_numpy(passage.astype(numpy.int64))
        mask[row, : len(passage) + 2] = 1
    return ids, mask


def without(count):
    """Returns the parts of the first `count` blocks that shorter networks lack."""
    return {(block, part) for block in DROPPED_FIRST[:count] for part in ("attn", "mlp")}


def drawn(generator):
    """Returns a sub-network: its depth, its widths, where it merges tokens, and now and then a part
    more that is missing."""
    skipped = without(generator.randrange(len(DROPPED_FIRST) + 1))
    one = generator.choice(WIDTHS)
    mixed = generator.random() < 0.3
    widths = [generator.choice(WIDTHS) if mixed else one for _ in range(DEPTH)]
    parts = [(block, part) for block in range(1, DEPTH - 1) for part in ("attn", "mlp")]
    skipped |= {part for part in parts if generator.random() < SKIPPED}
    merged = {}
    while generator.random() < MERGING and len(merged) < 2:
        merged[generator.randrange(1, DEPTH)] = generator.choice((2, 2, 3, 4))
    return encoder.Form(widths, skipped, merged)


def merging(merged):
    """Returns all blocks in int8, before some of which tokens are merged."""
    return encoder.Form([WIDTHS[0]] * DEPTH, merged=merged, is_int8=True)


def forms(generator, recipe, sandwich):
    """Returns the sub-networks of a step; None is the whole network."""
    if recipe == "merged":
        one = merging(dict(*generator.choices(list(MERGED), MERGED.values())))
        if generator.random() < MERGED_SKIPPED:
            one.skipped.add((generator.randrange(1, DEPTH), generator.choice(("attn", "mlp"))))
        return [one]
    if not sandwich:
        return [drawn(generator) for _ in range(3)]
    smallest = encoder.Form([WIDTHS[-1]] * DEPTH, without(len(DROPPED_FIRST)), MERGED_MOST)
    return [None, smallest, drawn(generator)]


def loss_of(tokens, relations):
    """Returns the distance of the tokens' states to the teacher's, of the vectors to the teacher's,
    and of the similarities in the batch, which decide what a search finds."""
    sizes, taught = tokens.sizes[:, :, None], tokens.taught
    output, target = tokens.pooled(), encoder.pooled(taught, tokens.sizes)
    apart = ((tokens.states - taught).square() * sizes).sum() / (taught.square() * sizes).sum()
    loss = 10 * (1 - (output * target).sum(1)).mean() + STATES * apart
    if not relations:
        return loss
    others = ~torch.eye(len(target), dtype=torch.bool, device=target.device)

    def log_shares(vectors):
        rows = (vectors @ target.T)[others].view(len(target), -1)
        return F.log_softmax(rows / TEMPERATURE, 1)

    distance = F.kl_div(
        log_shares(output), log_shares(target), reduction="batchmean", log_target=True
    )
    return loss + distance


class Run:
    """State of a training: the network, its optimizer and the number of steps done."""

    def __init__(self, options):
        self.options = options
        self.teacher = encoder.load(options.teacher).eval().requires_grad_(False)
        self.student = encoder.load(options.teacher)
        tokenizer = Tokenizer.from_file(str(options.teacher / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        options.out.mkdir(parents=True, exist_ok=True)
        self.texts = Texts(options.texts, tokenizer, options.out, options.tokens)
        self.device = options.device
        self.watched = {
            path.stem: [[t.to(self.device) for t in batch] for batch in watch(path, tokenizer)]
            for path in options.watch
        }
        self.done, self.spent, self.lines = 0, 0.0, []
        sort_by = [self.texts.batch(random.Random(f"sort {at}")) for at in range(6)]
        encoder.sort_units(self.student, sort_by)
        self.teacher.to(self.device)
        self.student.to(self.device)
        trained = [p for p in self.student.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim == 2]
        others = [p for p in trained if p.ndim != 2]
        groups = [
            {"params": matrices, "weight_decay": 0.01},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        self.checkpoint = options.out / "checkpoint.pt"
        if self.checkpoint.exists():
            self.restore()

    def restore(self):
        """Goes on from the last checkpoint."""
        state = torch.load(self.checkpoint, weights_only=False, map_location=self.device)
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.spent, self.lines = state["done"], state["spent"], state["lines"]

    def save(self):
        """Writes a checkpoint in the place of the last one."""
        content = io.BytesIO()
        state = {"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**state, "done": self.done, "spent": self.spent, "lines": self.lines}, content)
        place(self.checkpoint, content.getvalue())
        place(self.options.out / "log.jsonl", "".join(self.lines).encode())

    def step(self):
        """Runs a step, which depends on the seed and its number alone, and returns its losses."""
        options = self.options
        generator = random.Random(f"{options.seed} {self.done}")
        ids, mask = self.texts.batch(generator)
        ids, mask = ids.to(self.device), mask.to(self.device)
        with torch.no_grad(), torch.autocast(self.device, torch.bfloat16):
            taught = self.teacher.tokens(ids, mask).states
        rate, falling = RATES[options.recipe]
        left = (options.steps - self.done) / (falling * options.steps)
        share = min(1.0, (self.done + 1) / WARMUP, max(0.02, left))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * share
        losses = []
        for form in forms(generator, options.recipe, not options.no_sandwich):
            rows = slice(0, len(ids) // SHARE_OF_WHOLE if form is None else None)
            with torch.autocast(self.device, torch.bfloat16):
                tokens = self.student.tokens(ids[rows], mask[rows], form, taught[rows])
            loss = loss_of(tokens, not options.no_relations)
            (loss / (loss.detach() + NEAR)).backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        return losses

    def look(self):
        """Returns the recall of some sub-networks on the texts that are watched."""
        found = {}
        for name, batches in self.watched.items():
            taught = outputs_of(self.teacher, batches, None)
            for label, form in watched_forms(self.options.recipe):
                outputs = outputs_of(self.student, batches, form)
                found[f"{name} {label}"] = round(recall(outputs, taught), 3)
        return found


def watched_forms(recipe):
    """Returns the sub-networks whose recall the log has, with their names."""
    if recipe == "merged":
        for merged in ({}, {4: 3}, {4: 2}, {3: 3}, {3: 2}):
            name = "".join(f", 1 of {every} before {block}" for block, every in merged.items())
            yield "int8" + name, merging(merged)
        return
    for count in range(len(DROPPED_FIRST) + 1):
        for merged in ({}, {3: 2}, MERGED_MOST):
            name = "".join(f", 1 of {every} before {block}" for block, every in merged.items())
            form = encoder.Form([WIDTHS[0]] * DEPTH, without(count), merged)
            yield f"{DEPTH - count} blocks{name}", form
    for widths in WIDTHS[1:]:
        form = encoder.Form([widths] * DEPTH)
        yield f"{DEPTH} blocks of {widths[1]}", form


def watch(path, tokenizer):
    """Reads a file's first texts as batches of like lengths."""
    texts = [json.loads(line)["text"] for line in path.open()][:WATCHED]
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    passages = sorted((numpy.array(e.ids[:126], numpy.uint16) for e in encoded), key=len)
    return [padded(passages[at : at + 50]) for at in range(0, len(passages), 50)]


@torch.no_grad()
def outputs_of(network, batches, form):
    """Returns the vectors of all texts."""
    return torch.cat([network(ids, mask, form) for ids, mask in batches])


def recall(found, taught, count=10):
    """Returns the share of the teacher's nearest neighbours that `found` has among its vectors."""
    nearest = []
    for vectors in (found, taught):
        similar = vectors @ taught.T
        similar.fill_diagonal_(-9)
        nearest.append(similar.topk(count).indices)
    same = (nearest[0][:, :, None] == nearest[1][:, None, :]).any(2)
    return same.float().mean().item()


def main():
    """Trains, or goes on to train."""
    options = parse()
    torch.set_num_threads(options.threads)
    run = Run(options)
    recent, last = [], time.process_time()
    while run.done < min(options.steps, options.until or options.steps):
        recent.append(run.step())
        if run.done % EVERY and run.done < options.steps:
            continue
        run.spent += time.process_time() - last
        mean = [round(value, 4) for value in numpy.array(recent).mean(0).tolist()]
        line = {"step": run.done, "losses": mean, "processor_seconds": round(run.spent)}
        if run.done % (8 * EVERY) == 0 or run.done == options.steps:
            line["recall"] = run.look()
        run.lines.append(json.dumps(line) + "\n")
        recent, last = [], time.process_time()
        run.save()
        left = run.spent / run.done * (options.steps - run.done) / 3600
        print(f"{run.done}/{options.steps} {line}, {left:.1f} processor hours left", flush=True)


if __name__ == "__main__":
    main()
