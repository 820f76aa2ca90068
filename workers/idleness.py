"""When an objective worker that was told to end without work has none: a suggestion under way is work to come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

WAIT_SECONDS: Final = 20.0
"""One claim waits so long for a suggestion."""

PREPARING: Final = "preparing"
"""What a claim answers while suggestions are being computed."""

PREPARING_SECONDS: Final = 600.0
"""A suggestion is waited for so long, or as long as the worker was told if that is more; then nobody computes any."""


@dataclass(slots=True)
class Idleness:
    """The time since the last trial, by what kept it from being given out."""

    limit_seconds: float | None
    """None for a worker that never ends for want of work."""
    clock: Callable[[], float] = time.monotonic
    _since: float = field(init=False)
    _preparing_since: float | None = None

    def __post_init__(self) -> None:
        self._since = self.clock()

    def wait_seconds(self) -> float:
        """How long the next claim may wait, so that the worker ends in time."""
        if self.limit_seconds is None:
            return WAIT_SECONDS
        left = self.limit_seconds - (self.clock() - self._since)
        return min(WAIT_SECONDS, max(left, 0.0) + 0.1)

    def saw(self, reason: str | None) -> float | None:
        """Note why there was no trial; the seconds without any once they are too many."""
        now = self.clock()
        if reason == PREPARING:
            self._preparing_since = now if self._preparing_since is None else self._preparing_since
            self._since = now
            seconds, limit = now - self._preparing_since, PREPARING_SECONDS
        else:
            self._preparing_since = None
            seconds, limit = now - self._since, 0.0
        if self.limit_seconds is None or seconds <= max(limit, self.limit_seconds):
            return None
        return seconds
