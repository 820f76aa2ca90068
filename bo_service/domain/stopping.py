"""The stopping rules: when a study is over, and how many trials it may still start."""

from __future__ import annotations

from datetime import datetime

from bo_service.domain.study import Study
from bo_service.domain.trial import TrialState


def reason_to_stop(study: Study, *, now: datetime) -> str | None:
    """Why the study is over at this moment, or None; open trials do not count as results."""
    rules = study.spec.stopping
    n_failed = study.n(TrialState.FAILED)
    n_done = study.n_closed - study.n_given
    if rules.max_trials is not None and n_done >= rules.max_trials:
        return f"max_trials: {n_done} trials have closed"
    if rules.max_cost is not None and study.cost >= rules.max_cost:
        return f"max_cost: {study.cost:g} of {rules.max_cost:g} spent"
    if rules.max_seconds is not None and (now - study.created_at).total_seconds() >= rules.max_seconds:
        return f"max_seconds: {rules.max_seconds:g} s have passed since creation"
    if rules.target is not None and study.best_value is not None:
        sign = study.spec.objectives[0].sign
        if sign * study.best_value >= sign * rules.target:
            return f"target: {study.best_value:g} reaches {rules.target:g}"
    if rules.no_improvement_trials is not None:
        since = study.n_closed - study.last_improvement
        if study.best_value is not None and since >= rules.no_improvement_trials:
            return f"no_improvement_trials: none in the last {since} trials"
    if (
        rules.max_failure_rate is not None
        and n_failed >= rules.min_failures
        and n_failed > rules.max_failure_rate * study.n_closed
    ):
        return f"max_failure_rate: {n_failed} of {study.n_closed} trials failed"
    return None


def is_failure(rule: str) -> bool:
    """Whether the reason a rule gave means that the study failed, not that it is done."""
    return rule.startswith("max_failure_rate:")


def n_parallel_left(study: Study) -> int:
    """How many more trials may run at the same time."""
    limit = study.spec.parallelism
    return 10**9 if limit is None else max(limit - study.n(TrialState.RUNNING), 0)


def n_startable(study: Study) -> tuple[int, str | None]:
    """How many new trials may start now, and what limits them: `parallelism`, `budget` or None."""
    allowed = n_parallel_left(study)
    limited_by = "parallelism" if study.spec.parallelism is not None else None
    if study.spec.stopping.max_trials is not None:
        left = study.spec.stopping.max_trials - study.n_started
        if left < allowed:
            allowed, limited_by = left, "budget"
    return max(allowed, 0), limited_by
