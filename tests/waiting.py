"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def until(look: Callable[[], Found], what: str = "", *, seconds: float = 60) -> Found:
    """What `look` finds, once that is true; fails with `what` did not happen."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or 'what the test waits for'}"
        time.sleep(0.05)
    return found
