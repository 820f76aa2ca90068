"""Step 3: a heartbeat keeps the lease and tells the worker whether to go on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from bo_service.domain.errors import NotFound
from bo_service.domain.ids import LeaseToken, ProjectId, TrialId
from bo_service.domain.lease import Lease
from bo_service.domain.study import StudyState
from bo_service.orchestrator.ports import Store, UnitOfWork


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatReply:
    """All a worker needs to know between two reports."""

    lease_expires_at: datetime
    lease_seconds: float
    should_stop: bool
    should_pause: bool


def renew_lease(
    trial_id: TrialId, lease: LeaseToken, *, project_id: ProjectId, uow: UnitOfWork
) -> HeartbeatReply:
    """Extend the lease by its length, counted from now; workers of one study do not wait for each other here.

    Raises: NotFound, TrialClosed, LeaseLost.
    """
    with uow() as store:
        held = _held(trial_id, lease, project_id=project_id, store=store)
        now = store.now()
        lease_expires_at = now + timedelta(seconds=held.seconds)
        if not store.trials.keep_lease(held, now=now, lease_expires_at=lease_expires_at):
            # it was moved since it was read, and says so now
            _held(trial_id, lease, project_id=project_id, store=store)
            raise AssertionError("a lease that is held can be kept")
        store.commit()
    return HeartbeatReply(
        lease_expires_at=lease_expires_at,
        lease_seconds=held.seconds,
        should_stop=should_stop(held.study_state, is_requested=held.stop_requested),
        should_pause=False,
    )


def _held(trial_id: TrialId, token: LeaseToken, *, project_id: ProjectId, store: Store) -> Lease:
    found = store.trials.lease(trial_id)
    if found.project_id != project_id:
        raise NotFound("trial", trial_id)
    found.require(token)
    return found


def should_stop(study_state: StudyState, *, is_requested: bool) -> bool:
    """Whether a running trial's result is no longer wanted."""
    return is_requested or study_state in (StudyState.STOPPED, StudyState.ARCHIVED)
