"""Small records beside the main nouns: events, observations, fits, API keys, pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

from bo_service.domain.ids import FitId, ProjectId, StudyId, TrialId

T = TypeVar("T")


class EventKind(StrEnum):
    """What the event stream tells."""

    STUDY_CREATED = "study_created"
    STUDY_CHANGED = "study_changed"
    SUGGESTIONS_PREPARED = "suggestions_prepared"
    TRIAL_STARTED = "trial_started"
    TRIAL_PROGRESS = "trial_progress"
    STOP_REQUESTED = "stop_requested"
    TRIAL_CLOSED = "trial_closed"
    TRIAL_REQUEUED = "trial_requeued"
    TRIALS_IMPORTED = "trials_imported"
    FIT_FINISHED = "fit_finished"
    LATE_RESULT = "late_result"
    JOB_CRASHED = "job_crashed"
    BREAKER = "breaker"


WAKING: Final = frozenset(
    (
        EventKind.STUDY_CHANGED,
        EventKind.SUGGESTIONS_PREPARED,
        EventKind.FIT_FINISHED,
        EventKind.TRIAL_REQUEUED,
        EventKind.TRIALS_IMPORTED,
        EventKind.BREAKER,
    )
)
"""After these a claim that waits may get something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened; `seq` grows within a study and is given by the store."""

    seq: int = 0
    study_id: StudyId
    trial_id: TrialId | None = None
    kind: EventKind
    payload: Mapping[str, Any] = field(default_factory=dict)
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One value of one metric at one step; `step` is None for the final value."""

    trial_id: TrialId
    metric: str
    step: int | None
    attempt: int = 0
    """Which attempt reported it; 0 for trials that came finished."""
    value: float
    sem: float | None
    recorded_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A record of one run of generation: what went in, which surrogate, what it cost."""

    id: FitId
    study_id: StudyId
    data_version: int
    surrogate: str
    options: Mapping[str, Any]
    inputs: Mapping[str, Any]
    state: bytes | None
    diagnostics: Mapping[str, Any]
    seconds: float
    device: str
    created_at: datetime


OPERATORS_PROJECT: Final = "default"
"""The project of those who run the service: its keys may see the service as a whole."""


class Scope(StrEnum):
    """What a key may do; each includes the ones after it: admin, editor, worker, viewer."""

    ADMIN = "admin"
    EDITOR = "editor"
    WORKER = "worker"
    VIEWER = "viewer"

    def includes(self, needed: Scope) -> bool:
        order = list(Scope)
        return order.index(self) <= order.index(needed)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as the service keeps it: the hash, never the key."""

    id: str
    project_id: ProjectId
    project: str
    name: str
    scope: Scope
    key_hash: str
    prefix: str
    created_at: datetime
    expires_at: datetime | None = None
    """The end it was made with."""
    revoked_at: datetime | None = None
    """The end given to it later, at once or when the grace of a rotation is over."""

    def is_valid(self, now: datetime) -> bool:
        """Whether it opens anything at this time."""
        return all(end is None or now < end for end in (self.expires_at, self.revoked_at))


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """Who changed what through the API; `seq` grows and is given by the store."""

    seq: int = 0
    project_id: ProjectId
    key_id: str | None
    """None where keys are off."""
    key_name: str
    action: str
    """Method and route, such as `POST /v1/studies/{study}/stop`."""
    subject: Mapping[str, str]
    """What stood in the places of the route."""
    request_id: str
    address: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReply:
    """The answer given to the first request with an idempotency key."""

    request_hash: str
    status: int
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """One page of a list; `next_cursor` is None on the last."""

    items: Sequence[T]
    next_cursor: str | None
