"""Servers for the tests: one for all that change nothing, and others of their own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import support
from support import BINARY, CACHE, PIXELS, ROOT, TEXT, eventually, post

__all__ = [
    "BINARY",
    "FAMILIES",
    "FASHION",
    "PIXELS",
    "ROOT",
    "TEXT",
    "Served",
    "eventually",
    "post",
    "served",
    "support",
]

FASHION = {"fashion": ROOT / "tests" / "pool" / "fashion"}
"""The small image family."""
FAMILIES = {"text": ROOT / "models" / "text"} | FASHION


class Served(support.Served):
    """A running server over the text family and the small image family, or over other families."""

    def __init__(self, *options, families=None, **process):
        super().__init__(families or FAMILIES, "--cache", CACHE, *options, **process)


_served = None


def served():
    """Returns the one server of this run, which ends with it."""
    global _served
    _served = _served or Served()
    return _served
