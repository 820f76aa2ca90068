"""What every step that moves a trial owes the study: counters, incumbent, stopping rules, events, next job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from bo_service.domain.dominance import front_after, scores
from bo_service.domain.job import JobKind, Queue
from bo_service.domain.proposal import Measurement
from bo_service.domain.records import Event, EventKind
from bo_service.domain.spec import StudySpec
from bo_service.domain.stopping import is_failure, n_startable, reason_to_stop
from bo_service.domain.study import Study, StudyState
from bo_service.domain.trial import AttemptExit, Trial, TrialState
from bo_service.orchestrator.notify import notify_best, notify_stopped
from bo_service.orchestrator.ports import Store
from surrogates.registry import plugins

WORKER_MEMORY: Final = timedelta(minutes=2)
"""A worker that asked this recently counts when suggestions are prepared."""


TIMELESS_BUFFER: Final = 16
"""Model-free suggestions kept ready for each slot, so that asking never waits for compute."""

MAX_TIMELESS: Final = 800


def n_timeless_to_prepare(study: Study, *, n_slots: int) -> int:
    """How many suggestions of a model-free generator should lie ready: they never grow stale."""
    return min(max(n_slots, 1) * TIMELESS_BUFFER, MAX_TIMELESS, n_startable(study)[0])


def is_short(study: Study, *, n_fresh: int, n_slots: int) -> bool:
    """Whether so few suggestions lie ready that compute should prepare more."""
    if looks_at_data(study):
        return n_fresh < n_to_prepare(study, n_slots=n_slots)
    return n_fresh < (n_timeless_to_prepare(study, n_slots=n_slots) + 1) // 2


def looks_at_data(study: Study) -> bool:
    """Whether the study's generator learns from results; one that is not installed here counts as one that does."""
    return needs_model(study.spec)


def needs_model(spec: StudySpec) -> bool:
    """The same of a specification."""
    found = plugins().get(spec.surrogate.name)
    return found is None or found.abilities.needs_model


def queue_of(study: Study) -> Queue:
    """Where the study's fits belong, by its plug-in."""
    found = plugins().get(study.spec.surrogate.name)
    return Queue(found.abilities.queue) if found is not None else Queue.CPU


def n_to_prepare(study: Study, *, n_slots: int) -> int:
    """How many suggestions should lie ready: one for each idle slot, and half the busy ones ahead of time.

    A lone busy worker gets none: its next point waits for its own result.
    """
    n_running = study.n(TrialState.RUNNING)
    ahead = n_slots // 2
    return min(max(n_slots - n_running, ahead), n_startable(study)[0])


def request_compute(
    study: Study, *, store: Store, now: datetime, payload: Mapping[str, Any] | None = None
) -> None:
    """Queue an Advance where the study is active; a second one of the same payload is absorbed by the first."""
    if study.state is StudyState.ACTIVE:
        store.jobs.enqueue(study.id, JobKind.ADVANCE, payload or {}, queue=queue_of(study), now=now)


def close_trial(
    before: Trial,
    state: TrialState,
    how: AttemptExit,
    *,
    study: Study,
    store: Store,
    now: datetime,
    measurements: Mapping[str, Measurement] | None = None,
    cost: float | None = None,
    reason: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Trial:
    """Move an open trial to a terminal state with everything that follows from it, and save both.

    `study` is locked by the caller. Raises: TrialClosed.
    """
    version = study.data_version + 1
    trial = before.closed(
        state,
        now=now,
        version=version,
        measurements=measurements,
        cost=cost,
        reason=reason,
        metadata=metadata,
    )
    if before.attempt and before.state is TrialState.RUNNING:
        store.trials.end_attempt(before, how, now=now)
        _free_slot(before, study=study, store=store)
    store.trials.observe_final([trial], now)
    study = replace(
        study.tallied(before.state, state), data_version=version, cost=study.cost + (trial.cost or 0.0)
    )
    trial, study = with_front(trial, study, store=store)
    store.trials.save(trial)
    if trial.on_front:
        notify_best(trial, study, store=store, now=now)
    study = stop_if_due(replace(study, updated_at=now), store=store, now=now)
    store.studies.save(study)
    record_closing(trial, how, store=store, now=now)
    if looks_at_data(study):
        # a generator that looks at no data has nothing to learn: claims top it up
        request_compute(study, store=store, now=now)
    return trial


def _free_slot(trial: Trial, *, study: Study, store: Store) -> None:
    """A pushed trial gives its slot back, and the relay hears of it."""
    if study.spec.push is not None:
        store.pushes.free(study.id, trial.id)


def with_front(trial: Trial, study: Study, *, store: Store) -> tuple[Trial, Study]:
    """Let the trial compete for the front; members it dominates are saved without their mark."""
    if trial.state is not TrialState.COMPLETED or not may_join_front(trial, study):
        return trial, study
    joins, thrown = front_after(trial, store.trials.front(study.id), study.spec)
    if not joins:
        return trial, study
    for member in thrown:
        store.trials.save(replace(member, on_front=False))
    trial = replace(trial, on_front=True)
    study = replace(study, last_improvement=study.n_closed)
    return trial, with_incumbent(trial, study)


def may_join_front(trial: Trial, study: Study) -> bool:
    """False where the incumbent of a single objective already rules the trial out, without a look at the front."""
    if len(study.spec.objectives) != 1 or study.best_value is None:
        return True
    (metric,) = study.spec.objectives
    found = trial.measurements.get(metric.name)
    return found is not None and metric.sign * found.value > metric.sign * study.best_value


def with_incumbent(trial: Trial, study: Study) -> Study:
    """The study with this trial as its best, where there is a single objective."""
    found = scores(trial.measurements, study.spec)
    if found is None or len(found) != 1:
        return study
    return replace(study, best_trial_id=trial.id, best_value=study.spec.objectives[0].sign * found[0])


def stop_if_due(study: Study, *, store: Store, now: datetime) -> Study:
    """The study STOPPED where a rule says so, with an event."""
    reason = reason_to_stop(study, now=now) if study.state is StudyState.ACTIVE else None
    return study if reason is None else stopped_study(study, reason, store=store, now=now)


def stopped_study(study: Study, reason: str, *, store: Store, now: datetime) -> Study:
    """The study STOPPED, with its event and notices; the caller saves it."""
    stopped = study.moved_to(StudyState.STOPPED, reason=reason, now=now)
    store.records.add_event(
        Event(
            study_id=study.id,
            kind=EventKind.STUDY_CHANGED,
            payload={"state": stopped.state.value, "reason": reason},
            at=now,
        )
    )
    notify_stopped(stopped, has_failed=is_failure(reason), store=store, now=now)
    return stopped


def record_closing(trial: Trial, how: AttemptExit, *, store: Store, now: datetime) -> None:
    """Tell the event stream how the trial ended."""
    store.records.add_event(
        Event(
            study_id=trial.study_id,
            trial_id=trial.id,
            kind=EventKind.TRIAL_CLOSED,
            payload={
                "number": trial.number,
                "state": trial.state.value,
                "exit": how.value,
                "metrics": {name: m.value for name, m in trial.measurements.items()},
                "on_front": trial.on_front,
                "reason": (trial.reason or "")[:200] or None,
            },
            at=now,
        )
    )


def requeue_trial(
    before: Trial,
    how: AttemptExit,
    *,
    study: Study,
    store: Store,
    now: datetime,
    reason: str | None,
    counted: bool = True,
) -> Trial:
    """Put a running trial back for another attempt and save; the data version stays. `study` is locked."""
    trial = before.queued(now=now, reason=reason, counted=counted)
    store.trials.end_attempt(before, how, now=now)
    _free_slot(before, study=study, store=store)
    store.trials.save(trial)
    store.studies.save(replace(study.tallied(before.state, trial.state), updated_at=now))
    store.records.add_event(
        Event(
            study_id=study.id,
            trial_id=trial.id,
            kind=EventKind.TRIAL_REQUEUED,
            payload={"number": trial.number, "exit": how.value, "reason": (reason or "")[:200] or None},
            at=now,
        )
    )
    return trial


def end_attempt_without_result(
    trial: Trial, how: AttemptExit, *, study: Study, store: Store, now: datetime, reason: str, may_retry: bool
) -> Trial:
    """QUEUED again while attempts are left and retrying is allowed, else FAILED. `study` is locked."""
    if may_retry and trial.n_attempts < study.spec.retry.max_attempts and not trial.stop_requested:
        return requeue_trial(trial, how, study=study, store=store, now=now, reason=reason)
    return close_trial(trial, TrialState.FAILED, how, study=study, store=store, now=now, reason=reason)
