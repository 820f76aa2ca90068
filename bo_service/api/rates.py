"""How often one caller may ask: token buckets, kept by each HTTP process for itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

BURST: Final = 2.0
"""A bucket holds so many seconds' worth of requests."""

MAX_BUCKETS: Final = 10_000


@dataclass(slots=True)
class Rates:
    """Buckets by caller; a caller that is silent for `BURST` seconds has a full one again, so it may be forgotten."""

    per_second: float
    """0 for no limit."""
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Caller to (tokens left, time of the last look)."""

    def take(self, who: str) -> float:
        """0 where the caller may go on, else the seconds until it may."""
        if self.per_second <= 0:
            return 0.0
        now, full = time.monotonic(), max(BURST * self.per_second, 1.0)
        left, seen = self._buckets.get(who, (full, now))
        left = min(full, left + (now - seen) * self.per_second)
        is_allowed = left >= 1.0
        if len(self._buckets) >= MAX_BUCKETS and who not in self._buckets:
            self._forget(now)
        self._buckets[who] = (left - is_allowed, now)
        return 0.0 if is_allowed else (1.0 - left) / self.per_second

    def give_back(self, who: str) -> None:
        """Undo a take that was let through."""
        if who in self._buckets:
            left, seen = self._buckets[who]
            self._buckets[who] = (min(left + 1.0, max(BURST * self.per_second, 1.0)), seen)

    def _forget(self, now: float) -> None:
        """Drop the full buckets; where all callers are busy, drop every one rather than grow."""
        self._buckets = {who: b for who, b in self._buckets.items() if now - b[1] < BURST}
        if len(self._buckets) >= MAX_BUCKETS:
            self._buckets.clear()
