"""A lease: what a heartbeat must know of a trial, its study and its attempt, and no more."""

from __future__ import annotations

from dataclasses import dataclass

from bo_service.domain.ids import LeaseToken, ProjectId, TrialId
from bo_service.domain.study import StudyState
from bo_service.domain.trial import TrialState, require_lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A trial as its worker's heartbeat sees it."""

    trial_id: TrialId
    number: int
    state: TrialState
    token: LeaseToken | None
    seconds: float
    attempt: int
    stop_requested: bool
    project_id: ProjectId
    study_state: StudyState

    def require(self, token: LeaseToken) -> None:
        """Check that the holder of this token may report. Raises: TrialClosed, LeaseLost."""
        require_lease(token, self.token, self.number, self.state)
