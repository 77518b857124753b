#!/usr/bin/env python3
"""Changes configurations of checkpoints key by key, and compares answers with the library's.

Each reader has a small random checkpoint. Every key of its configuration is removed, set to null
and to other values, and keys that others have are added: one at a time, and in random pairs. The
reference library (transformers, timm, sentence-transformers) saves the checkpoint and computes what
it gives; where a change needs other tensors, the checkpoint is tried with the old ones as well.
Tessera must give the same within 1e-4 of 1 + |x|, or refuse and name the key.

  make sweep
  .tessera/training/bin/python tools/sweep_configs.py --binary target/release/tessera --reader bert

What Tessera serves `alone` the library does not read, or leaves to chance; there is nothing to
compare. The exit status is 1 if an answer differs, a refusal names no key, or a request fails.
"""

import argparse
import copy
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import sweep_hub
import sweep_moduleformer
import sweep_sentence
import sweep_serving
import sweep_timm
import torch
import transformers
from support import BINARY
from sweep_reference import Reference, Unreadable

NUM_AT_ONCE = 150
"""Families in a pool."""
SHOWN = 300
"""Characters of a fault that are shown."""
FAULTS = ("different", "unnamed", "failed")


@dataclass
class Case:
    """A configuration of a reader, and what came of it."""

    name: str
    changes: tuple
    is_kept: bool
    """Whether the tensors are those of the base."""
    reference: Reference | None = None
    reason: str = ""
    """Why the library does not read it."""
    outcome: str = ""
    detail: str = field(default="", repr=False)

    def __str__(self):
        what = " and ".join(map(str, self.changes)) or "the base"
        return what + (" with the base's tensors" if self.is_kept else "")


def main():
    """Tries the readers that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--binary", type=Path, default=BINARY, metavar="FILE")
    parser.add_argument("--reader", action="append", metavar="NAME", help="only this one")
    parser.add_argument("--pairs", type=int, default=40, metavar="N", help="pairs of a reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", metavar="KEY", help="only changes of such keys")
    parser.add_argument("--verbose", action="store_true", help="show every configuration")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    readers = {}
    for kind in (sweep_hub, sweep_moduleformer, sweep_sentence, sweep_timm):
        readers |= kind.readers()
    if unknown := set(arguments.reader or []) - readers.keys():
        parser.error(f"no reader {', '.join(unknown)}; there are {', '.join(readers)}")
    counts = {}
    for name in arguments.reader or readers:
        cases = sweep(name, readers[name], arguments)
        counts[name] = Counter(case.outcome for case in cases)
        report(name, cases, arguments.verbose)
    return summary(counts)


def sweep(name, reader, arguments):
    """Returns the reader's cases, tried."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sweep-") as place:
        folder = Path(place)
        base = folder / "base/a"
        base.mkdir(parents=True)
        standard = reader.write(base, copy.deepcopy(reader.space.base), None)
        plans = [(), *((change,) for change in reader.space.singles())]
        plans += reader.space.pairs(arguments.pairs, f"{arguments.seed} {name}")
        plans = [plan for plan in plans if any(arguments.only in c.key for c in plan) or not plan]
        cases: list[Case] = []
        for first in range(0, len(plans), NUM_AT_ONCE):
            pool = folder / "pool"
            pool.mkdir()
            some = []
            for number, plan in enumerate(plans[first : first + NUM_AT_ONCE], first):
                some += written(pool, f"{name}-{number:04}", reader, plan, base, standard)
                progress(f"{name}: {number + 1} of {len(plans)} configurations written")
            references = {case.name: case.reference for case in some}
            found = sweep_serving.answers(arguments.binary, pool, references, folder / "cache")
            for case in some:
                judge(case, *found[case.name])
            cases += some
            shutil.rmtree(pool)
    progress("")
    print(f"{name}: {len(cases)} configurations in {time.monotonic() - started:.0f} s")
    return cases


def written(pool, name, reader, plan, base, standard):
    """Writes the families of a plan; returns their cases."""
    files = copy.deepcopy(reader.space.base)
    for change in plan:
        change.made_in(files)
    cases = []
    for is_kept in (False, True):
        case = Case(name + ("-kept" if is_kept else ""), plan, is_kept)
        folder = pool / case.name / "a"
        folder.mkdir(parents=True)
        try:
            case.reference = reader.write(folder, copy.deepcopy(files), base if is_kept else None)
        except Unreadable as error:
            case.reason = str(error)
            if not is_kept and not (folder / "model.safetensors").exists():
                shutil.rmtree(folder.parent)
                continue
        sweep_serving.write_manifest(folder.parent, reader.kind, case.reference or standard)
        cases.append(case)
        if case.reference and (is_kept or has_tensors_of(folder, base)):
            break
    return cases


def has_tensors_of(folder, base):
    """Returns whether two checkpoints have tensors of the same names and shapes."""
    headers = []
    for place in (folder, base):
        content = (place / "model.safetensors").read_bytes()
        headers.append(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return headers[0] == headers[1]


def judge(case, is_served, found):
    """Decides the outcome of a case."""
    case.detail = f"{found:.1e}" if isinstance(found, float) else str(found)
    keys = {change.name() for change in case.changes}
    if not is_served:
        # Sizes that contradict the tensors or the manifest are refused by those, and an entry of a
        # list by its file.
        names = {*keys, "tensor `", "the tensors ", "positions for", "output.width", "`image"}
        names |= {change.key.partition(":")[0] for change in case.changes if ":" in change.key}
        # A file that is missing is refused by the name that the change gave it.
        names |= {change.value for change in case.changes if change.value == "made_up"}
        is_named = any(name in case.detail for name in names) or "model_type" in keys
        case.outcome = "refused" if is_named else "unnamed"
    elif case.reference is None:
        case.outcome = "alone"
    elif not isinstance(found, float):
        case.outcome = "failed"
    else:
        case.outcome = "equal" if found <= sweep_serving.TOLERANCE else "different"
    if case.outcome == "alone":
        case.detail = case.reason.partition("\n")[0]


def report(name, cases, is_verbose):
    """Prints the faults, or all cases."""
    for case in cases:
        if is_verbose or case.outcome in FAULTS:
            print(f"  {name}, {case}: {case.outcome}: {case.detail[:SHOWN]}")


def summary(counts):
    """Prints the table; returns the exit status."""
    columns = ["equal", "refused", "alone", *FAULTS]
    print("\n" + "".join(f"{word:>18}" for word in ["reader", "configurations", *columns]))
    for name, count in counts.items():
        cells = [name, count.total(), *(count[column] for column in columns)]
        print("".join(f"{cell:>18}" for cell in cells))
    total = sum(counts.values(), Counter())
    cells = ["all", total.total(), *(total[column] for column in columns)]
    print("".join(f"{cell:>18}" for cell in cells))
    return int(any(total[fault] for fault in FAULTS))


def progress(text):
    """Shows how far it is, on one line of a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text:79}", end="\r", file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
