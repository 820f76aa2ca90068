"""Step 5: a worker closes its trial with a result, and the next fit is queued in the same transaction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bo_service.domain.errors import Invalid, LeaseLost, StudyClosed, TrialClosed
from bo_service.domain.ids import LeaseToken, ProjectId, TrialId
from bo_service.domain.proposal import Measurement
from bo_service.domain.records import Event, EventKind
from bo_service.domain.spec import StudySpec
from bo_service.domain.study import Study
from bo_service.domain.trial import AttemptExit, Trial, TrialState
from bo_service.orchestrator.bookkeeping import close_trial
from bo_service.orchestrator.find_trial import find_trial
from bo_service.orchestrator.ports import Store, UnitOfWork
from bo_service.orchestrator.record_progress import check_metric_names, sem_problems
from surrogates.errors import Problem

WITH_RESULT: Final = (AttemptExit.COMPLETED, AttemptExit.STOPPED, AttemptExit.NON_FINITE)
"""How an attempt ends that reports values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the worker reports at the end; values may be non-finite here and nowhere further."""

    measurements: Mapping[str, Measurement]
    cost: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    is_stopped_early: bool = False


def record_observation(
    trial_id: TrialId, outcome: Outcome, *, lease: LeaseToken, project_id: ProjectId, uow: UnitOfWork
) -> Trial:
    """Close a running trial: COMPLETED, STOPPED where it ended early, FAILED or INFEASIBLE where not finite.

    The same result again under the same lease changes nothing, so that a lost answer may be asked for again.
    A result that comes too late is kept as a note and refused.
    Raises: NotFound, Invalid, LeaseLost, TrialClosed, StudyClosed.
    """
    with uow() as store:
        trial, study = find_trial(trial_id, project_id=project_id, store=store, lock=True)
        try:
            trial.require_lease(lease)
            study.require_open()
        except (LeaseLost, TrialClosed, StudyClosed) as error:
            if _is_repeat(trial, outcome, lease, store=store):
                return trial
            _keep_as_note(trial, outcome, error, study=study, store=store)
            store.commit()
            raise
        state, how, reason = judge(outcome, study.spec)
        closed = close_trial(
            trial,
            state,
            how,
            study=study,
            store=store,
            now=store.now(),
            measurements=finite(outcome.measurements),
            cost=outcome.cost,
            reason=reason,
            metadata=outcome.metadata,
        )
        store.commit()
    return closed


def judge(outcome: Outcome, spec: StudySpec) -> tuple[TrialState, AttemptExit, str | None]:
    """The terminal state these values lead to, how the attempt ended, and why if not well.

    Raises: Invalid where a metric is unknown, missing or has a negative standard error.
    """
    check_metric_names(outcome.measurements, spec)
    problems = sem_problems(outcome.measurements)
    if not outcome.is_stopped_early:
        problems += [
            Problem(
                f"metrics.{metric.name}",
                "is missing",
                f"a completed trial reports every {metric.goal} metric",
            )
            for metric in spec.required_metrics
            if metric.name not in outcome.measurements
        ]
    if problems:
        raise Invalid(problems)
    broken = [name for name, m in outcome.measurements.items() if not math.isfinite(m.value)]
    if broken:
        state = TrialState.INFEASIBLE if spec.retry.non_finite == "infeasible" else TrialState.FAILED
        return state, AttemptExit.NON_FINITE, f"non_finite: {', '.join(broken)}"
    if outcome.is_stopped_early:
        return TrialState.STOPPED, AttemptExit.STOPPED, None
    return TrialState.COMPLETED, AttemptExit.COMPLETED, None


def finite(measurements: Mapping[str, Measurement]) -> dict[str, Measurement]:
    """The measurements that JSON and the database can hold."""
    return {name: m for name, m in measurements.items() if math.isfinite(m.value)}


def _is_repeat(trial: Trial, outcome: Outcome, lease: LeaseToken, *, store: Store) -> bool:
    if trial.state.is_open or dict(trial.measurements) != finite(outcome.measurements):
        return False
    attempts = store.trials.attempts(trial.id)
    return bool(attempts) and attempts[-1].lease == lease and attempts[-1].exit in WITH_RESULT


def _keep_as_note(
    trial: Trial,
    outcome: Outcome,
    error: LeaseLost | TrialClosed | StudyClosed,
    *,
    study: Study,
    store: Store,
) -> None:
    values = {name: m.value for name, m in finite(outcome.measurements).items()}
    error.extras["kept_as_note"] = True
    store.records.add_event(
        Event(
            study_id=study.id,
            trial_id=trial.id,
            kind=EventKind.LATE_RESULT,
            payload={"number": trial.number, "metrics": values, "cost": outcome.cost, "why": error.code},
            at=store.now(),
        )
    )
