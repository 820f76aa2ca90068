"""Identifiers: time-ordered UUIDs (RFC 9562, version 7) and lease tokens."""

from __future__ import annotations

import secrets
import threading
import time
from typing import NewType
from uuid import UUID

StudyId = NewType("StudyId", str)
TrialId = NewType("TrialId", str)
SuggestionId = NewType("SuggestionId", str)
JobId = NewType("JobId", str)
FitId = NewType("FitId", str)
PushId = NewType("PushId", str)
ProjectId = NewType("ProjectId", str)
WebhookId = NewType("WebhookId", str)
DeliveryId = NewType("DeliveryId", str)
LeaseToken = NewType("LeaseToken", str)


class _Ticks:
    """Milliseconds with a 12-bit counter below them; no value is given twice, and none goes back."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def next(self) -> int:
        with self._lock:
            self._last = max(self._last + 1, (time.time_ns() // 1_000_000) << 12)
            return self._last


_ticks = _Ticks()


def new_id() -> str:
    """A UUID of version 7 (method 1 of RFC 9562, section 6.2); ids of one process sort by creation."""
    tick = _ticks.next()
    milliseconds, counter = tick >> 12, tick & 0xFFF
    bits = (milliseconds & (2**48 - 1)) << 80 | 0x7 << 76 | counter << 64 | 0x2 << 62 | secrets.randbits(62)
    return str(UUID(int=bits))


def new_lease_token() -> LeaseToken:
    """An unguessable token; only its holder may report on the attempt."""
    return LeaseToken(secrets.token_urlsafe(18))
