"""`tessera bench` against a server: what it reports of policies, rounds and the oracle."""

import json
import subprocess
import tempfile
import unittest
import urllib.request
from pathlib import Path

from served import ROOT, served, support


def bench(*arguments):
    """Runs the command for a second and a half a load, and returns the process and its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "load.json"
        common = ["--url", f"http://{served().http_address}", "--json", str(out)]
        command = [str(support.BINARY), "bench", "--seconds", "1.5", "--warm-up", "0.5", *common]
        done = subprocess.run(
            [*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done, json.loads(out.read_text()) if out.exists() else None


class Bench(unittest.TestCase):
    def test_rounds_of_a_pattern_beside_a_fixed_plan_and_the_oracle(self):
        url = f"http://{served().http_address}/v2/models/fashion/plans"
        with urllib.request.urlopen(url) as answer:
            cheapest = json.load(answer)["plans"][0]
        plan, quality = cheapest["plan"], cheapest["quality"]
        done, found = bench(
            *("--family", "fashion", "--budgets-ms", "50", "--capacity", "60", "--loads", "1,2"),
            *("--traffic", "bursts", "--plan", plan, "--rounds", "2"),
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        policies = [(row["policy"], row["load"], row["round"]) for row in found["rows"]]
        expected = [("tessera", 1), ("oracle", 1), (plan, 1), ("tessera", 2), ("oracle", 2)]
        for load in (1.0, 2.0):
            own = [(policy, number) for policy, at, number in policies if at == load]
            # The fixed plan has a second round if it was in time.
            self.assertIn(own, [expected, [*expected, (plan, 2)]])
        rows = {(row["policy"], row["load"]): row for row in found["rows"]}
        self.assertGreater(rows["tessera", 1.0]["asked"], 20)
        self.assertEqual(rows["tessera", 1.0]["asked"], rows[plan, 1.0]["asked"])
        self.assertAlmostEqual(rows[plan, 1.0]["mean_quality"], quality, places=6)
        self.assertGreater(rows["oracle", 1.0]["mean_quality"], quality)
        self.assertEqual([found["load"] for found in found["comparisons"]], [1.0, 2.0])
        self.assertEqual(len(done.stdout.splitlines()), 2 + len(policies) + 2)

    def test_texts_of_several_lengths(self):
        arguments = ["--family", "text", "--capacity", "30", "--loads", "1", "--fixed", "1"]
        done, found = bench(*arguments, "--budgets-ms", "200", "--traffic", "lengths")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual({row["traffic"] for row in found["rows"]}, {"lengths"})
        self.assertIn("oracle", {row["policy"] for row in found["rows"]})
        done, found = bench(*arguments, "--budgets-ms", "100,200")
        self.assertEqual(done.returncode, 0, done.stderr)
        # With several budgets the order of the requests would be open.
        self.assertNotIn("oracle", {row["policy"] for row in found["rows"]})

    def test_what_cannot_be_asked_together_is_refused(self):
        for arguments, said in [
            (["--traffic", "bursts", "--trace", "x"], "cannot be used with"),
            (["--traffic", "waves"], "[possible values: steady, bursts, day, flood, lengths]"),
            (["--all-plans", "--fixed", "3"], "cannot be used with"),
            (["--rounds", "0"], "1..=1000"),
            (["--traffic", "lengths", "--capacity", "9"], "families that read texts"),
        ]:
            done, found = bench("--family", "fashion", *arguments)
            self.assertNotEqual(done.returncode, 0, arguments)
            self.assertIsNone(found)
            self.assertIn(said, done.stderr)


if __name__ == "__main__":
    unittest.main()
