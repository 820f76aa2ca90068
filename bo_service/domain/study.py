"""The study: its specification, state and the counters kept beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from bo_service.domain.errors import StudyClosed
from bo_service.domain.ids import ProjectId, StudyId, TrialId
from bo_service.domain.spec import StudySpec
from bo_service.domain.trial import TrialState


class StudyState(StrEnum):
    """ACTIVE <-> PAUSED; either -> STOPPED <-> ACTIVE (resume); any -> ARCHIVED."""

    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    STOPPED = "STOPPED"
    ARCHIVED = "ARCHIVED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """ACTIVE <-> PAUSED; either -> STOPPED (by rule or by hand), resumable; any -> ARCHIVED (final)."""

    id: StudyId
    project_id: ProjectId
    spec: StudySpec
    seed: int
    state: StudyState = StudyState.ACTIVE
    state_reason: str | None = None
    spec_version: int = 1
    data_version: int = 0
    """Grows with every change the model should see."""
    next_number: int = 1
    """The next trial's number; never goes back."""
    counts: Mapping[TrialState, int] = field(default_factory=dict)
    n_given: int = 0
    """Trials that came with their result: attached, imported or branched; they cost this study no budget."""
    cost: float = 0.0
    best_trial_id: TrialId | None = None
    """Single objective: the feasible incumbent."""
    best_value: float | None = None
    last_improvement: int = 0
    """How many trials had closed with a result when the incumbent last changed."""
    design_index: int = 0
    """Points of the space-filling sequence handed out so far; never goes back."""
    breaker_reason: str | None = None
    """Why the model is bypassed at present, if it is."""
    breaker_opened_at: datetime | None = None
    parent_study_id: StudyId | None = None
    created_at: datetime
    updated_at: datetime

    @property
    def n_trials(self) -> int:
        """Trials ever started, in any state."""
        return sum(self.counts.values())

    def n(self, *states: TrialState) -> int:
        """How many trials are in one of these states."""
        return sum(self.counts.get(state, 0) for state in states)

    @property
    def n_open(self) -> int:
        """RUNNING, PAUSED or waiting for another attempt."""
        return self.n(TrialState.RUNNING, TrialState.PAUSED, TrialState.QUEUED)

    @property
    def n_closed(self) -> int:
        return self.n_trials - self.n_open

    @property
    def n_started(self) -> int:
        """Trials this study gave out itself."""
        return self.n_trials - self.n_given

    @property
    def staleness(self) -> int:
        """Results a suggestion may lag behind and still be fresh."""
        return self.n(TrialState.RUNNING) if self.spec.staleness is None else self.spec.staleness

    @property
    def takes_results(self) -> bool:
        return self.state is not StudyState.ARCHIVED

    def require_open(self) -> None:
        """Raises: StudyClosed where the study is archived."""
        if self.state is StudyState.ARCHIVED:
            raise StudyClosed(f"study {self.spec.name!r} is archived", study_state=self.state.value)

    def tallied(self, before: TrialState | None, after: TrialState) -> Study:
        """The study after a trial moved between states; `before` is None for a new trial."""
        counts = dict(self.counts)
        if before is not None:
            counts[before] = counts.get(before, 0) - 1
        counts[after] = counts.get(after, 0) + 1
        return replace(self, counts=counts)

    def moved_to(self, state: StudyState, *, reason: str | None, now: datetime) -> Study:
        """The study in another state; a move to where it is changes nothing.

        Raises: StudyClosed where the study is archived.
        """
        if state is self.state:
            return self
        self.require_open()
        return replace(self, state=state, state_reason=reason, updated_at=now)
