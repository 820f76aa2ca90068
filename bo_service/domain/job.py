"""A unit of compute, stored before it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from bo_service.domain.ids import JobId, LeaseToken, StudyId

FIRST_PAUSE: Final = timedelta(seconds=1)
LONGEST_PAUSE: Final = timedelta(minutes=10)
UNAVAILABLE_PAUSE: Final = timedelta(seconds=5)
"""A job given back because the database was away rests so long."""
LONGEST_RESEND: Final = timedelta(minutes=2)
"""A job that waits is told of again at least this often: a broker may have lost what it was told."""

MAX_CRASHES: Final = 3
"""So many crashes of one job trip the study's breaker."""


class Queue(StrEnum):
    """Where a job's message goes; a surrogate's plug-in says which."""

    CPU = "cpu"
    GPU = "gpu"
    LLM = "llm"
    OBJECTIVES = "objectives"
    """Trials for a fleet that evaluates objectives; never a job of ours."""


class Role(StrEnum):
    """What a process does."""

    COMPUTE = "compute"
    RELAY = "relay"


class JobState(StrEnum):
    """QUEUED -> RUNNING -> DONE | QUEUED (dirty, crashed, or its worker went away)."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    DONE = "DONE"


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
    queue: Queue = Queue.CPU
    """What the surrogate wants; the relay may send it elsewhere where nobody serves that."""
    payload: Mapping[str, Any] = field(default_factory=dict)
    is_dirty: bool = False
    """Something changed while it ran: run once more."""
    token: LeaseToken | None = None
    lease_expires_at: datetime | None = None
    n_crashes: int = 0
    error: str | None = None
    trace: str | None = None
    """The W3C traceparent of the request that queued it, where requests are traced."""
    sent_at: datetime | None = None
    """When the relay last sent a message for it; None since it was queued."""
    resend_at: datetime | None = None
    """When the next message is due; None where one is due at once."""
    ready_at: datetime
    """When it was last queued, or may next be tried: the queue's order, so that no study starves another."""
    created_at: datetime
    updated_at: datetime

    def requeued(self, *, now: datetime, pause: timedelta = timedelta(0)) -> Job:
        """QUEUED again, behind those that wait already; any lease on it is void."""
        return replace(
            self,
            state=JobState.QUEUED,
            is_dirty=False,
            token=None,
            lease_expires_at=None,
            sent_at=None,
            resend_at=None,
            ready_at=now + pause,
            updated_at=now,
        )

    def sent(self, *, now: datetime, resend_after: timedelta) -> Job:
        """A message for it goes out; the next one after a while, then after twice as long each time.

        A fleet that is busy for a day would else find a day of messages.
        """
        pause = resend_after
        if self.sent_at is not None and self.resend_at is not None:
            pause = min(2 * (self.resend_at - self.sent_at), max(LONGEST_RESEND, resend_after))
        return replace(self, sent_at=now, resend_at=now + pause)

    def done(self, *, now: datetime) -> Job:
        return replace(
            self, state=JobState.DONE, is_dirty=False, token=None, lease_expires_at=None, updated_at=now
        )


def pause_after(n_crashes: int) -> timedelta:
    """How long a job rests after so many crashes: 1, 2, 4 ... seconds, at most ten minutes."""
    doublings: int = min(n_crashes - 1, 20)
    return min(FIRST_PAUSE * (1 << doublings), LONGEST_PAUSE)


ALIVE: Final = timedelta(seconds=30)
"""A process of the service heard of this recently counts as alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceProcess:
    """A process of the service beside the HTTP ones, as it last said of itself."""

    name: str
    role: Role
    queues: tuple[Queue, ...]
    """What a compute worker serves; empty for a relay."""
    device: str
    trouble: str | None = None
    """What keeps it from its work, such as a broker that does not answer."""
    is_embedded: bool = False
    """Whether it is the child of an HTTP process and claims jobs without a broker."""
    version: str
    started_at: datetime
    seen_at: datetime
