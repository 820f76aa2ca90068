"""A unit of compute, stored before it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from bo_service.domain.ids import JobId, LeaseToken, StudyId

MAX_CRASHES: Final = 3
"""So many crashes of one job trip the study's breaker."""


class JobState(StrEnum):
    """QUEUED -> RUNNING -> DONE | QUEUED (dirty, or its worker died) | DEAD (crashed too often)."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    DEAD = "DEAD"


class JobKind(StrEnum):
    """What to compute."""

    ADVANCE = "advance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """QUEUED -> RUNNING -> DONE; at most one ADVANCE of a study in flight, plus one dirty flag."""

    id: JobId
    study_id: StudyId
    kind: JobKind
    state: JobState
    payload: Mapping[str, Any] = field(default_factory=dict)
    is_dirty: bool = False
    """Something changed while it ran: run once more."""
    token: LeaseToken | None = None
    lease_expires_at: datetime | None = None
    n_crashes: int = 0
    error: str | None = None
    created_at: datetime
    updated_at: datetime
