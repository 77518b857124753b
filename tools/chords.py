#!/usr/bin/env python3
"""Compares the stitched plans of a front with the chords between the anchors around them.

    tessera front --family fashion --measured --json | python3 tools/chords.py 's[0..6]' 'm[0..6]' 'l[0..6]'

Prints each stitched plan's quality minus the chord's at its latency, in points, as Markdown.
"""

import itertools
import json
import re
import subprocess
import sys

BINARY = "target/release/tessera"


def main():
    """Reads a front and prints the differences."""
    front = json.load(sys.stdin)
    plans = {
        plan["plan"]: (plan["predicted_latency_ms"], plan["quality"]) for plan in front["plans"]
    }
    anchors = sorted(place(front["family"], plan) for plan in sys.argv[1:])
    above = 0
    stitched = [plan for plan in plans if ">" in plan]
    print("| stitched plan | latency, ms | quality | minus the chord, points |\n|---|---|---|---|")
    for plan in stitched:
        latency, quality = plans[plan]
        difference = 100 * (quality - chord(anchors, latency))
        above += difference >= 0
        print(f"| `{plan}` | {latency:.2f} | {quality:.4f} | {difference:+.2f} |")
    print(f"\n{above} of {len(stitched)} on or above the chord")


def place(family, plan):
    """Returns latency and quality of a plan, which may be on no front."""
    command = [BINARY, "plan", "--family", family, "--plan", plan]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    latency, quality = re.search(r"([\d.]+) ms +[\d.]+ MB +([\d.]+)", text).groups()
    return float(latency), float(quality)


def chord(anchors, latency):
    """Returns the quality at `latency` on the lines between anchors."""
    if latency <= anchors[0][0]:
        return anchors[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(anchors):
        if latency <= x1:
            return y0 + (y1 - y0) * (latency - x0) / (x1 - x0)
    return anchors[-1][1]


if __name__ == "__main__":
    main()
