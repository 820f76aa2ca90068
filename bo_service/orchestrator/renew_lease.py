"""Step 3: a heartbeat keeps the lease and tells the worker whether to go on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from bo_service.domain.ids import LeaseToken, ProjectId, TrialId
from bo_service.domain.study import Study, StudyState
from bo_service.domain.trial import Trial
from bo_service.orchestrator.find_trial import find_trial
from bo_service.orchestrator.ports import UnitOfWork


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
    """Extend the lease by its length, counted from now.

    Raises: NotFound, TrialClosed, LeaseLost.
    """
    with uow() as store:
        trial, study = find_trial(trial_id, project_id=project_id, store=store, lock=True)
        trial.require_lease(lease)
        now = store.now()
        renewed = trial.renewed(now=now)
        store.trials.save(renewed)
        store.trials.renew_attempt(renewed, now=now)
        store.commit()
    assert renewed.lease_expires_at is not None
    return HeartbeatReply(
        lease_expires_at=renewed.lease_expires_at,
        lease_seconds=renewed.lease_seconds,
        should_stop=should_stop(trial, study),
        should_pause=False,
    )


def should_stop(trial: Trial, study: Study) -> bool:
    """Whether a running trial's result is no longer wanted."""
    return trial.stop_requested or study.state in (StudyState.STOPPED, StudyState.ARCHIVED)
