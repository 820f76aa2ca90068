"""The trial and its attempts: who works on it, until when, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from bo_service.domain.errors import LeaseLost, TrialClosed
from bo_service.domain.ids import FitId, LeaseToken, StudyId, SuggestionId, TrialId
from bo_service.domain.proposal import Measurement, Parameters


class TrialState(StrEnum):
    """Three open states and five terminal ones."""

    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    QUEUED = "QUEUED"
    COMPLETED = "COMPLETED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"
    INFEASIBLE = "INFEASIBLE"
    ABANDONED = "ABANDONED"

    @property
    def is_open(self) -> bool:
        return self in (TrialState.RUNNING, TrialState.PAUSED, TrialState.QUEUED)


class TrialSource(StrEnum):
    """Where the configuration came from."""

    SUGGESTION = "suggestion"
    ENQUEUED = "enqueued"
    ATTACHED = "attached"
    IMPORTED = "imported"
    BRANCHED = "branched"


class AttemptExit(StrEnum):
    """How an attempt ended; RUNNING while it has not."""

    RUNNING = "running"
    COMPLETED = "completed"
    STOPPED = "stopped"
    ERROR = "error"
    TIMEOUT = "timeout"
    NON_FINITE = "non_finite"
    INFEASIBLE = "infeasible"
    RELEASED = "released"
    LEASE_EXPIRED = "lease_expired"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Which model, which data, which seed, why a fallback."""

    generator: str
    surrogate: str | None = None
    fit_id: FitId | None = None
    data_version: int | None = None
    seed: int | None = None
    acquisition_value: float | None = None
    fallback_reason: str | None = None
    predictions: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Its fields; `dataclasses.asdict` would copy them all deeply, on every claim."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One worker's go at a trial."""

    trial_id: TrialId
    number: int
    worker: str
    lease: LeaseToken
    started_at: datetime
    last_heartbeat_at: datetime
    lease_expires_at: datetime
    ended_at: datetime | None = None
    exit: AttemptExit = AttemptExit.RUNNING

    def ended(self, how: AttemptExit, *, now: datetime) -> Attempt:
        return replace(self, exit=how, ended_at=now)


def require_lease(given: LeaseToken, held: LeaseToken | None, number: int, state: TrialState) -> None:
    """See Trial.require_lease. Raises: TrialClosed, LeaseLost."""
    if not state.is_open:
        raise TrialClosed(f"trial {number} is already {state.value}", trial_state=state.value)
    if state is not TrialState.RUNNING or given != held:
        raise LeaseLost(
            f"the lease on trial {number} is over",
            hint="drop this trial; another attempt owns it or will",
            trial_state=state.value,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """RUNNING -> COMPLETED | STOPPED | FAILED | INFEASIBLE | QUEUED (attempts left); RUNNING <-> PAUSED;
    any open state -> ABANDONED. A terminal state is final.
    """

    id: TrialId
    study_id: StudyId
    number: int
    state: TrialState
    parameters: Parameters
    source: TrialSource
    provenance: Provenance
    suggestion_id: SuggestionId | None = None
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    cost: float | None = None
    worker: str | None = None
    lease: LeaseToken | None = None
    lease_seconds: float = 60.0
    lease_expires_at: datetime | None = None
    n_attempts: int = 0
    """Attempts that count against the retry policy: a released one does not."""
    attempt: int = 0
    """Number of the latest attempt; never goes back."""
    stop_requested: bool = False
    reason: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    created_at: datetime
    started_at: datetime | None = None
    updated_at: datetime
    closed_at: datetime | None = None
    closed_version: int | None = None
    """The study's data version that first contains this trial's end."""
    on_front: bool = False
    """Not dominated by another feasible trial."""

    def leased(self, worker: str, lease: LeaseToken, *, seconds: float, now: datetime) -> Trial:
        """RUNNING for this worker, as a new attempt."""
        return replace(
            self,
            state=TrialState.RUNNING,
            worker=worker,
            lease=lease,
            lease_seconds=seconds,
            lease_expires_at=now + timedelta(seconds=seconds),
            n_attempts=self.n_attempts + 1,
            attempt=self.attempt + 1,
            started_at=self.started_at or now,
            updated_at=now,
        )

    def renewed(self, *, now: datetime, lease: LeaseToken | None = None) -> Trial:
        """The same attempt with a later lease end, under a new token if one is given."""
        return replace(
            self,
            lease=lease or self.lease,
            lease_expires_at=now + timedelta(seconds=self.lease_seconds),
            updated_at=now,
        )

    def require_lease(self, lease: LeaseToken) -> None:
        """Check that the holder of this token may report.

        Raises: TrialClosed where the trial has ended; LeaseLost where the token is not the current one.
        """
        require_lease(lease, self.lease, self.number, self.state)

    def queued(self, *, now: datetime, reason: str | None, counted: bool = True) -> Trial:
        """Waiting for another attempt."""
        return replace(
            self,
            state=TrialState.QUEUED,
            lease=None,
            lease_expires_at=None,
            n_attempts=self.n_attempts - (0 if counted else 1),
            reason=reason,
            updated_at=now,
        )

    def closed(
        self,
        state: TrialState,
        *,
        now: datetime,
        version: int,
        measurements: Mapping[str, Measurement] | None = None,
        cost: float | None = None,
        reason: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Trial:
        """In a terminal state.

        Raises: TrialClosed where it already is in one.
        """
        if not self.state.is_open:
            raise TrialClosed(
                f"trial {self.number} is already {self.state.value}", trial_state=self.state.value
            )
        return replace(
            self,
            state=state,
            measurements=measurements if measurements is not None else self.measurements,
            cost=cost if cost is not None else self.cost,
            reason=reason,
            metadata={**self.metadata, **(metadata or {})},
            lease=None,
            lease_expires_at=None,
            closed_at=now,
            closed_version=version,
            updated_at=now,
        )

    def asked_to_stop(self, *, reason: str | None, now: datetime) -> Trial:
        return replace(self, stop_requested=True, reason=reason or self.reason, updated_at=now)
