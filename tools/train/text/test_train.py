"""Tests of the training: killed, it goes on to the same losses; nested networks are nested.

make test-training
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import encoder
import torch
import train

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
L6 = ROOT / "models/text/anchors/l6"
STEPS = 5

# A run whose batches are small and that keeps a checkpoint after every step.
PROGRAM = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import train
train.EVERY, train.WARMUP = 1, 2
train.main()
"""


def lines_of(folder):
    """Returns the losses of each step that a run in `folder` has noted."""
    path = folder / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["losses"] for line in lines]


class Training(unittest.TestCase):
    """The trainer as a program."""

    def command(self, folder, recipe):
        """Returns the command of a run in `folder`, on the sentences of the project's documents."""
        texts = folder / "mails.jsonl"
        if not texts.exists():
            parts = [
                part for path in ROOT.glob("docs/*.md") for part in path.read_text().split("\n\n")
            ]
            rows = [{"id": str(place), "text": part} for place, part in enumerate(parts)]
            texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        program = [sys.executable, "-c", PROGRAM, str(HERE), "--texts", str(texts), "--out"]
        return [
            *program,
            str(folder),
            "--steps",
            str(STEPS),
            "--teacher",
            str(L6),
            "--tokens",
            "512",
            "--threads",
            "1",
            "--recipe",
            recipe,
        ]

    def test_a_killed_run_goes_on_to_the_same_losses(self):
        for recipe in train.RATES:
            with (
                self.subTest(recipe),
                tempfile.TemporaryDirectory() as one,
                tempfile.TemporaryDirectory() as other,
            ):
                whole, killed = Path(one), Path(other)
                self.kill(self.command(whole, recipe), self.command(killed, recipe), whole, killed)

    def kill(self, at_once, command, whole, killed):
        """Checks that a run that is killed and begun again has the losses of one that is not."""
        subprocess.run(at_once, check=True, stdout=subprocess.DEVNULL)
        expected = lines_of(whole)
        self.assertEqual(len(expected), STEPS)
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while len(lines_of(killed)) < 2:
            self.assertIsNone(running.poll(), "it ended before it was killed")
            time.sleep(0.05)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        self.assertLess(len(lines_of(killed)), STEPS)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        self.assertEqual(lines_of(killed), expected)


class Nesting(unittest.TestCase):
    """The networks inside the network."""

    def test_sorted_units_change_nothing_and_a_form_of_all_is_the_whole(self):
        ids = torch.tensor([[101, 2023, 2003, 102], [101, 7632, 102, 0]])
        mask = (ids != 0).float()
        network = encoder.load(L6)
        with torch.no_grad():
            before = network(ids, mask)
            encoder.sort_units(network, [(ids, mask)])
            after = network(ids, mask)
            same = network(ids, mask, encoder.Form([(12, 1536)] * 6))
            narrow = network(ids, mask, encoder.Form([(8, 1024)] * 6))
        self.assertLess((before - after).abs().max().item(), 1e-5)
        self.assertTrue(torch.equal(after, same))
        self.assertGreater((narrow - same).abs().max().item(), 1e-3)

    def test_int8_products_round_rows_and_their_gradients_do_not(self):
        rows = torch.tensor([[1.27, 0.004, -0.106], [0.0, 0.0, 0.0]], requires_grad=True)
        weight, bias = torch.eye(3), torch.zeros(3)
        found = encoder.product(rows, weight, bias, is_int8=True)
        expected = torch.tensor([[1.27, 0.0, -0.11], [0.0, 0.0, 0.0]])
        self.assertLess((found - expected).abs().max().item(), 1e-6)
        found.sum().backward()
        self.assertTrue(torch.equal(rows.grad, torch.ones(2, 3)))

    def test_a_merged_text_is_its_own_in_every_batch(self):
        network = encoder.load(L6)
        form = encoder.Form([(12, 1536)] * 6, set(), {1: 3, 4: 2})
        text = torch.tensor([[101, 2023, 2003, 2019, 2590, 7099, 102]])
        longer = torch.full((2, 12), 7099)
        longer[0, :7], longer[0, 7:] = text[0], 0
        mask = (longer != 0).float()
        with torch.no_grad():
            alone = network.tokens(text, torch.ones(1, 7), form)
            among = network.tokens(longer, mask, form)
        self.assertEqual(alone.sizes.sum().item(), 7)
        self.assertEqual(among.sizes.sum(1).tolist(), [7, 12])
        self.assertEqual(alone.states.shape[1], 3)
        self.assertLess((alone.pooled() - among.pooled()[:1]).abs().max().item(), 1e-5)

    def test_what_is_given_is_what_was_taken(self):
        network = encoder.load(L6)
        other = encoder.load(L6)
        given = encoder.give(network)
        for index, block in enumerate(other.blocks):
            encoder.take(block, given, f"encoder.layer.{index}.")
        for name, tensor in encoder.give(other).items():
            self.assertTrue(torch.equal(tensor, given[name]), name)


if __name__ == "__main__":
    unittest.main()
