"""Waiting for what comes about by itself."""

import time


def eventually(condition, limit=30.0, pause=0.01):
    """Waits until `condition` returns something true, and returns that.

    Asks every `pause` seconds. Fails if `limit` seconds have passed, which only a fault takes.
    """
    deadline = time.monotonic() + limit
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"what is waited for has not come about in {limit} s")
        time.sleep(pause)
    return found
