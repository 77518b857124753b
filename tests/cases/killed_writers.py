#!/usr/bin/env python3
"""Kills `fit --refit`, `fit` and `evaluate --again` at random moments.

After each kill the family must load and be as it was, or as the whole run makes it; the next run
must end well and leave nothing behind. `--kills` says how often each command is killed, `--only`
which.
"""

import argparse
import hashlib
import json
import random
import shutil

from case import Pool, Wrong, main

FITTED = ("fits.json",)


def digest(family, names):
    """Returns one digest of files, of which some may be missing."""
    found = hashlib.sha256()
    for name in names:
        path = family / name
        found.update(path.read_bytes() if path.is_file() else b"missing")
    return found.hexdigest()


def forget_fits(pool):
    """Removes the family's maps, so that `fit` has all of them to do."""
    shutil.rmtree(pool.family / "fits", ignore_errors=True)
    (pool.family / "fits.json").write_text(json.dumps({"maps": {}}))


def kill(pool, command, kills, choice):
    """Kills a command at random moments; returns how often it was in the middle of its work."""
    name, arguments, watched, prepare = command
    prepare(pool)
    whole = pool.run(name, *arguments)
    in_time = 0
    for number in range(kills):
        prepare(pool)
        before = digest(pool.family, watched)
        in_time += pool.run_killed(choice.uniform(0, whole), name, *arguments)
        changed = digest(pool.family, watched) != before
        pool.run("inspect", "--family", "text")
        for file in ("fits.json", "quality.json"):
            json.loads((pool.family / file).read_text())
        if changed:
            expected = {"fit": "maps", "evaluate": "plans"}[name]
            file = {"fit": "fits.json", "evaluate": "quality.json"}[name]
            if not json.loads((pool.family / file).read_text())[expected]:
                raise Wrong(f"kill {number} of {name}: {file} is neither old nor new")
        pool.run(name, *arguments)
        pool.run("inspect", "--family", "text")
        if left := pool.litter():
            raise Wrong(f"kill {number} of {name}: {left} are left")
    return in_time


def killed_writers():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--only", choices=["refit", "fit", "evaluate"])
    options = parser.parse_args()
    choice = random.Random(options.seed)
    with Pool() as pool:
        small = ["--family", "text", "--data", pool.texts, "--max-tokens", 16]
        few = ["--examples", 24, "--plans", 2, "--rounds", 1]
        nothing = lambda _: None
        commands = {
            "refit": ("fit", [*small, "--refit"], FITTED, nothing),
            "fit": ("fit", small, FITTED, forget_fits),
            "evaluate": ("evaluate", [*small, *few, "--again"], ["quality.json"], nothing),
        }
        names = [options.only] if options.only else list(commands)
        if "evaluate" in names:
            pool.run("profile", "--family", "text")
        found = {name: kill(pool, commands[name], options.kills, choice) for name in names}
    counts = ", ".join(f"{name} killed {count} times" for name, count in found.items())
    return f"{counts} (seed {options.seed}); loads, and the next run ends well"


main(killed_writers)
