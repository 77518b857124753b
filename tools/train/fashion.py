#!/usr/bin/env python3
"""Trains the family `fashion`: three vision transformers, apart and then jointly, and a tiny one.

  python3 tools/train/fashion.py all                     everything, about two hours on 2 cores
  python3 tools/train/fashion.py anchor --anchor l       one anchor
  python3 tools/train/fashion.py joint                   stitches, nested widths and depths, exits
  python3 tools/train/fashion.py tiny                    the tiny anchor and its files alone
  python3 tools/train/fashion.py write                   the files of models/fashion

The data are Debian's package `dataset-fashion-mnist`. Stages that are done are not done again.
"""

import argparse
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import data
import supernet
import torch
import torch.nn.functional as F
import write
from optimize import Optimizer
from place import place
from vit import VisionTransformer

ANCHORS = {"s": (64, 2), "m": (128, 4), "l": (192, 6)}
DEPTH = 6
# An anchor for the least budgets: width, heads, blocks and pixels of a patch's side. Its 17 tokens
# are stitched to no other anchor; its last norm and head follow any number of blocks from the least
# on.
TINY = (64, 2, 5, 7)
TINY_LEAST = 1
TINY_EPOCHS = 30
TINY_RATE = 8e-3
BATCH = 128
SMOOTHING = 0.1
# Half of the patches are left out at first: an epoch takes half the time, and the network cannot
# lean on any one of them.
KEPT = 24
# For each anchor the cycles of its training: the rate at which one starts, its epochs on half of
# the patches and its epochs on all of them. A rate that suits the small one is too high for the
# wider ones, which a second cycle mends.
CYCLES = {
    "s": [(8e-3, 10, 3), (4e-3, 6, 4)],
    "m": [(3e-3, 6, 2), (2e-3, 6, 4)],
    "l": [(2.5e-3, 5, 1), (1.5e-3, 6, 3)],
}
JOINT_EPOCHS = 10
JOINT_RATE = 1e-3
EXIT_WEIGHT = 0.1
STITCH_IMAGES = 100
ROOT = Path(__file__).resolve().parents[2]


def main():
    """Runs the stage asked for."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    stages = {"anchor": train_anchor, "joint": train_joint, "tiny": train_tiny, "all": train_all}
    if options.stage == "write":
        write.write(options.out, ANCHORS, DEPTH, ROOT / "models" / "fashion", tiny=TINY)
        return
    stages[options.stage](options)


def parse():
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["anchor", "joint", "tiny", "write", "all"])
    parser.add_argument("--anchor", choices=list(CYCLES), default="l")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=ROOT / ".tessera" / "train" / "fashion")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def train_all(options):
    """Trains the anchors side by side, a thread each, then everything jointly."""
    common = ["--data", options.data, "--out", options.out, "--seed", options.seed]
    command = [sys.executable, __file__, "anchor", *map(str, common)]
    running = [subprocess.Popen([*command, "--anchor", name]) for name in reversed(ANCHORS)]
    if any([process.wait() for process in running]):
        raise SystemExit("an anchor's training failed")
    torch.set_num_threads(2)
    train_joint(options)
    train_nested(options)
    write.write(options.out, ANCHORS, DEPTH, ROOT / "models" / "fashion", tiny=TINY)


def train_tiny(options):
    """Trains the tiny anchor, and writes its files."""
    train_nested(options)
    write.write_tiny(options.out, TINY, ROOT / "models" / "fashion")


def train_nested(options):
    """Trains the tiny anchor at each of its depths at once, taught by the other anchors together."""
    target = options.out / "anchor-t-1.pt"
    if target.exists():
        print(f"{target} is there")
        return
    torch.manual_seed(options.seed)
    images, labels = data.load(options.data, "train")
    net = write.load(options.out, ANCHORS, DEPTH, ROOT / "models" / "fashion")
    taught = teach(net.bfloat16().anchors, images)
    width, heads, depth, patch = TINY
    model = VisionTransformer(width, heads, depth, patch=patch).bfloat16()
    steps = TINY_EPOCHS * (len(images) // BATCH)
    optimizer = Optimizer([model], TINY_RATE, steps)
    log = Log(target.with_suffix(".jsonl"), steps)
    for epoch in range(TINY_EPOCHS):
        for rows in data.batches(len(images), BATCH):
            mirrored = torch.rand(len(rows)) < 0.5
            batch = data.shift(data.mirror(images[rows], mirrored)).bfloat16()
            soft = taught[mirrored.long(), rows]
            said = model.depths(batch, TINY_LEAST)
            loss = sum(mixed_loss(logits, soft, labels[rows]) for logits in said) / len(said)
            loss.backward()
            optimizer.step()
            log.add(loss.item())
        log.epoch(epoch, patches=model.pos_embed.shape[1] - 1)
    optimizer.restore()
    save({"model": model.state_dict(), "accuracy": accuracy(model, options.data)}, target, log)


def train_anchor(options):
    """Trains one anchor on labels alone, cycle by cycle."""
    name, previous = options.anchor, None
    for number, cycle in enumerate(CYCLES[name], 1):
        target = options.out / f"anchor-{name}-{number}.pt"
        if target.exists():
            print(f"{target} is there")
        else:
            train_cycle(options, cycle, previous, target)
        previous = target


def train_cycle(options, cycle, previous, target):
    """Trains an anchor from where the cycle before it ended."""
    rate, masked, full = cycle
    torch.manual_seed(options.seed)
    images, labels = data.load(options.data, "train")
    model = VisionTransformer(*ANCHORS[options.anchor], DEPTH)
    if previous:
        model.load_state_dict(torch.load(previous)["model"])
    model.bfloat16()
    steps = (masked + full) * (len(images) // BATCH)
    optimizer = Optimizer([model], rate, steps)
    log = Log(target.with_suffix(".jsonl"), steps)
    for epoch in range(masked + full):
        kept = KEPT if epoch < masked else None
        for rows in data.batches(len(images), BATCH):
            logits = model(data.augment(images[rows]).bfloat16(), kept).float()
            loss = F.cross_entropy(logits, labels[rows], label_smoothing=SMOOTHING)
            loss.backward()
            optimizer.step()
            log.add(loss.item())
        log.epoch(epoch, patches=kept or model.pos_embed.shape[1] - 1)
    optimizer.restore()
    save({"model": model.state_dict(), "accuracy": accuracy(model, options.data)}, target, log)


def trained(options, name):
    """Reads an anchor as its last cycle left it."""
    return torch.load(options.out / f"anchor-{name}-{len(CYCLES[name])}.pt")["model"]


def train_joint(options):
    """Trains stitches, nested sub-networks and exits, taught by the anchors together."""
    target = options.out / "joint.pt"
    if target.exists():
        print(f"{target} is there")
        return
    torch.manual_seed(options.seed)
    images, labels = data.load(options.data, "train")
    widths, heads = zip(*ANCHORS.values(), strict=True)
    net = supernet.Supernet(supernet.new(widths, heads, DEPTH))
    for name, anchor in zip(ANCHORS, net.anchors, strict=False):
        anchor.load_state_dict(trained(options, name))
    supernet.fit_stitches(net, images[:STITCH_IMAGES])
    net.bfloat16()
    taught = teach(net.anchors, images)
    steps = JOINT_EPOCHS * (len(images) // BATCH)
    optimizer = Optimizer([net], JOINT_RATE, steps)
    log = Log(options.out / "joint.jsonl", steps)
    choices = supernet.generator(options.seed)
    for epoch in range(JOINT_EPOCHS):
        for rows in data.batches(len(images), BATCH):
            mirrored = torch.rand(len(rows)) < 0.5
            batch = data.shift(data.mirror(images[rows], mirrored)).bfloat16()
            soft = taught[mirrored.long(), rows]
            logits, exits = net.run(batch, net.sample(choices))
            loss = mixed_loss(logits, soft, labels[rows])
            # Exits learn on every path that passes them, without bending the blocks much.
            loss = loss + EXIT_WEIGHT * sum(mixed_loss(e, soft, labels[rows]) for e in exits)
            loss.backward()
            optimizer.step()
            log.add(loss.item())
        log.epoch(epoch)
    optimizer.restore()
    save({"model": net.state_dict()}, target, log)


@torch.no_grad()
def teach(anchors, images):
    """Returns what the anchors say together of each image, as it is and mirrored: the mean of their
    probabilities, [2, images, classes]. Each of them alone is a worse teacher."""
    taught = torch.zeros(2, len(images), 10)
    print("joint: the anchors label the images", flush=True)
    for start in range(0, len(images), BATCH):
        rows = slice(start, start + BATCH)
        for mirrored in range(2):
            batch = images[rows].flip(-1) if mirrored else images[rows]
            said = [torch.softmax(anchor(batch.bfloat16()).float(), 1) for anchor in anchors]
            taught[mirrored, rows] = torch.stack(said).mean(0)
    return taught


def mixed_loss(logits, taught, labels):
    """Half from the teacher's distribution, half from the labels."""
    logits = logits.float()
    soft = F.cross_entropy(logits, taught)
    return 0.5 * soft + 0.5 * F.cross_entropy(logits, labels, label_smoothing=SMOOTHING)


@torch.no_grad()
def accuracy(model, folder):
    """Returns the share of the test images that `model` classifies right."""
    images, labels = data.load(folder, "t10k")
    right = sum(
        (model(images[start : start + 500]).argmax(1) == labels[start : start + 500]).sum().item()
        for start in range(0, len(images), 500)
    )
    return right / len(images)


def save(state, path, log):
    """Puts the log and what was trained in their places; a stage is done when the latter is there."""
    content = io.BytesIO()
    torch.save(state, content)
    log.keep()
    place(path, content.getvalue())
    found = state.get("accuracy")
    log.say(f"wrote {path.name}" + (f", test accuracy {found:.4f}" if found else ""))


class Log:
    """A line of JSON an epoch, and a line for the person who waits now and then."""

    def __init__(self, path, steps):
        self.path, self.steps, self.lines = path, steps, []
        self.start, self.count, self.losses = time.time(), 0, []

    def keep(self):
        """Writes the lines of the whole stage."""
        place(self.path, "".join(line + "\n" for line in self.lines).encode())

    def add(self, loss):
        """Notes a step."""
        self.losses.append(loss)
        self.count += 1
        if self.count % 100 == 0:
            spent = time.time() - self.start
            left = spent / self.count * (self.steps - self.count)
            recent = self.losses[-100:]
            mean = sum(recent) / max(1, len(recent))
            self.say(f"{self.count}/{self.steps} loss {mean:.4f}, {left / 60:.0f} min left")

    def epoch(self, number, **facts):
        """Writes the epoch's mean loss."""
        mean = sum(self.losses) / max(1, len(self.losses))
        self.losses = []
        line = {
            "stage": self.path.stem,
            **facts,
            "epoch": number + 1,
            "loss": round(mean, 4),
            "seconds": round(time.time() - self.start),
        }
        self.lines.append(json.dumps(line))

    def say(self, message):
        """Prints at once."""
        print(f"{self.path.stem}: {message}", flush=True)


if __name__ == "__main__":
    main()
