"""What tests, cases and benchmarks share: servers of their own, what those count, and waiting.

Start at `server.py`. Nothing here knows what is tested or measured.
"""

from support.metrics import Metrics
from support.questions import PIXELS, TEXT, post
from support.server import BINARY, CACHE, ROOT, Served, Server, free_port
from support.waiting import eventually

__all__ = [
    "BINARY",
    "CACHE",
    "PIXELS",
    "ROOT",
    "TEXT",
    "Metrics",
    "Served",
    "Server",
    "eventually",
    "free_port",
    "post",
]
