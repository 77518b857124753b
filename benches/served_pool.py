"""The default pool behind servers of one's own, for what measures them from outside."""

import os
import sys
from pathlib import Path

os.environ.setdefault("TESSERA_CACHE", str(Path.home() / ".cache/tessera"))
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "conformance"))
from served import Served  # noqa: E402

POOL = ROOT / "models"
FAMILIES = {name: POOL / name for name in ("text", "fashion")}


def serve(*options):
    """Starts a server over the default pool."""
    return Served(*options, others=FAMILIES)
