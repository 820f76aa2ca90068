"""Identifiers: time-ordered UUIDs (RFC 9562, version 7) and lease tokens."""

from __future__ import annotations

import secrets
import time
from typing import NewType
from uuid import UUID

StudyId = NewType("StudyId", str)
TrialId = NewType("TrialId", str)
SuggestionId = NewType("SuggestionId", str)
JobId = NewType("JobId", str)
FitId = NewType("FitId", str)
ProjectId = NewType("ProjectId", str)
LeaseToken = NewType("LeaseToken", str)


def new_id() -> str:
    """A UUID of version 7: 48 bits of milliseconds, then random bits; sorts by creation."""
    milliseconds = time.time_ns() // 1_000_000
    bits = (milliseconds & (2**48 - 1)) << 80 | secrets.randbits(80)
    bits = bits & ~(0xF << 76) | 0x7 << 76
    bits = bits & ~(0x3 << 62) | 0x2 << 62
    return str(UUID(int=bits))


def new_lease_token() -> LeaseToken:
    """An unguessable token; only its holder may report on the attempt."""
    return LeaseToken(secrets.token_urlsafe(18))
