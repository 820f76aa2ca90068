"""Step 4: intermediate values of a running trial, its learning curve."""

from __future__ import annotations

import math
from collections.abc import Mapping

from bo_service.domain.errors import Invalid
from bo_service.domain.ids import LeaseToken, ProjectId, TrialId
from bo_service.domain.proposal import Measurement
from bo_service.domain.records import Event, EventKind
from bo_service.domain.spec import StudySpec
from bo_service.orchestrator.find_trial import find_trial
from bo_service.orchestrator.ports import UnitOfWork
from bo_service.orchestrator.renew_lease import HeartbeatReply, should_stop
from surrogates.errors import Problem


def record_progress(
    trial_id: TrialId,
    step: int,
    values: Mapping[str, Measurement],
    *,
    lease: LeaseToken,
    project_id: ProjectId,
    uow: UnitOfWork,
) -> HeartbeatReply:
    """Record values at a step and renew the lease; the same value again changes nothing.

    Raises: NotFound, TrialClosed, LeaseLost, Invalid, Conflict.
    """
    with uow() as store:
        trial, study = find_trial(trial_id, project_id=project_id, store=store, lock=True)
        trial.require_lease(lease)
        check_metric_names(values, study.spec)
        if problems := [*_not_finite(values), *sem_problems(values)]:
            raise Invalid(problems)
        now = store.now()
        store.trials.observe(trial, step, values, now)
        renewed = trial.renewed(now=now)
        store.trials.save(renewed)
        store.trials.renew_attempt(renewed, now=now)
        store.records.add_event(
            Event(
                study_id=study.id,
                trial_id=trial.id,
                kind=EventKind.TRIAL_PROGRESS,
                payload={
                    "number": trial.number,
                    "step": step,
                    "metrics": {name: m.value for name, m in values.items()},
                },
                at=now,
            )
        )
        store.commit()
    assert renewed.lease_expires_at is not None
    return HeartbeatReply(
        lease_expires_at=renewed.lease_expires_at,
        lease_seconds=renewed.lease_seconds,
        should_stop=should_stop(study.state, is_requested=trial.stop_requested),
        should_pause=False,
    )


def _not_finite(values: Mapping[str, Measurement]) -> list[Problem]:
    return [
        Problem(
            f"metrics.{name}", "is not finite", "leave it out of the curve; complete takes NaN and infinity"
        )
        for name, m in values.items()
        if not math.isfinite(m.value)
    ]


def sem_problems(values: Mapping[str, Measurement]) -> list[Problem]:
    """Standard errors that are none."""
    return [
        Problem(f"metrics.{name}.sem", f"{m.sem:g} is not a standard error", "give a finite number >= 0")
        for name, m in values.items()
        if m.sem is not None and not (math.isfinite(m.sem) and m.sem >= 0)
    ]


def check_metric_names(values: Mapping[str, Measurement], spec: StudySpec) -> None:
    """Raises: Invalid where a metric is not of this study."""
    known = [metric.name for metric in spec.metrics]
    strangers = [name for name in values if name not in known]
    if strangers:
        raise Invalid(
            [
                Problem(f"metrics.{name}", "is not a metric of this study", f"metrics: {', '.join(known)}")
                for name in strangers
            ]
        )
