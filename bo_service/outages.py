"""What a process needs may be away for a while: said once, once a minute while it lasts, and once when it is over."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

REMINDER_SECONDS: Final = 60.0

logger = logging.getLogger(__name__)


class BrokerAway(Exception):
    """The broker does not answer; what it should be told is told later."""


@dataclass(slots=True)
class Outage:
    """One thing that may be away; every thread that misses it says so here."""

    what: str
    clock: Callable[[], float] = time.monotonic
    _acts: set[str] = field(default_factory=set)
    _since: float = 0.0
    _said_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, act: str, reason: str) -> None:
        """It kept this act from being done."""
        with self._lock:
            now, is_new = self.clock(), not self._acts
            self._acts.add(act)
            if is_new:
                self._since = now
            elif now - self._said_at < REMINDER_SECONDS:
                return
            self._said_at = now
            seconds = now - self._since
        if is_new:
            logger.warning("%s is away, and tried again all the while: %s", self.what, reason)
        else:
            logger.warning("%s is still away after %.0f s: %s", self.what, seconds, reason)

    def over(self, act: str | None = None) -> None:
        """What failed before was done; without an act, whatever it was."""
        with self._lock:
            if not self._acts or (act is not None and act not in self._acts):
                return
            self._acts.clear()
            seconds = self.clock() - self._since
        logger.info("%s is back after %.0f s", self.what, seconds)


DATABASE: Final = Outage("the database")
BROKER: Final = Outage("the broker")


@dataclass(slots=True)
class Seldom:
    """Lets one line a minute pass and counts the others."""

    clock: Callable[[], float] = time.monotonic
    _due_at: float = 0.0
    _n_kept_back: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def passes(self) -> int | None:
        """How many were kept back since the last one; None where this one is, too."""
        with self._lock:
            now = self.clock()
            if now < self._due_at:
                self._n_kept_back += 1
                return None
            self._due_at, n, self._n_kept_back = now + REMINDER_SECONDS, self._n_kept_back, 0
            return n
