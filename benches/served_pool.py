"""The default pool behind servers of one's own, for what measures them from outside."""

import os
import sys
from pathlib import Path

os.environ.setdefault("TESSERA_CACHE", str(Path.home() / ".cache/tessera"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support import CACHE, PIXELS, ROOT, TEXT, Served, post

__all__ = ["PIXELS", "POOL", "TEXT", "post", "serve"]

POOL = ROOT / "models"
FAMILIES = {name: POOL / name for name in ("text", "fashion")}


def serve(*options):
    """Starts a server over the default pool."""
    return Served(FAMILIES, "--cache", CACHE, *options)
