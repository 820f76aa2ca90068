"""Step 2: a worker asks for trials and gets what is ready: its own, waiting ones, the user's, fresh suggestions."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from bo_service.domain.errors import Invalid
from bo_service.domain.ids import ProjectId, PushId, StudyId, TrialId, new_id, new_lease_token
from bo_service.domain.records import Event, EventKind
from bo_service.domain.stopping import n_parallel_left, n_startable
from bo_service.domain.study import Study, StudyState
from bo_service.domain.suggestion import Suggestion, SuggestionSource, SuggestionState
from bo_service.domain.trial import Attempt, Trial, TrialSource, TrialState
from bo_service.orchestrator.bookkeeping import (
    WORKER_MEMORY,
    is_short,
    looks_at_data,
    request_compute,
    stop_if_due,
)
from bo_service.orchestrator.ports import Store, UnitOfWork
from surrogates.errors import Problem
from surrogates.space import SearchSpace

MAX_SUGGESTIONS_A_JOB: Final = 100
MAX_NOTED: Final = 10_000
TIMELESS_CHECK: Final = 4
"""Model-free suggestions are counted at every fourth trial; sixteen a worker lie ready."""


class Sightings:
    """Which workers this process noted lately, so that a busy one is not written down at every claim."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._noted: dict[tuple[StudyId, str], tuple[int, float]] = {}

    def is_due(self, study_id: StudyId, worker: str, slots: int) -> bool:
        """Whether to write the sighting; true at most once in a while, and at every change of the slots."""
        key, now = (study_id, worker), time.monotonic()
        before = self._noted.get(key)
        if before is not None and before[0] == slots and now - before[1] < self._seconds:
            return False
        if len(self._noted) > MAX_NOTED:
            self._noted.clear()
        self._noted[key] = (slots, now)
        return True


SIGHTINGS: Final = Sightings(WORKER_MEMORY.total_seconds() / 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest:
    """What the worker asks for."""

    worker: str
    count: int = 1
    fixed: Mapping[str, Any]
    lease_seconds: float | None = None
    reclaim: bool = True
    """Whether trials this worker already holds come first."""
    push: PushId | None = None
    """The push in the message that woke the worker; it brings one trial, once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimReply:
    """The trials given, or why there are none and whether waiting can help."""

    study_id: StudyId
    trials: tuple[Trial, ...]
    study_state: StudyState
    reason: str | None = None
    limited_by: str | None = None
    may_wait: bool = False


def claim_trials(
    study_key: str, request: ClaimRequest, *, project_id: ProjectId, uow: UnitOfWork
) -> ClaimReply:
    """Lease up to `count` trials to the worker, and ask for compute where suggestions ran short.

    Order: RUNNING trials the worker holds, QUEUED ones, the user's configurations, fresh suggestions.
    Raises: NotFound, Invalid.
    """
    with uow() as store:
        now = store.now()
        study = store.studies.find(project_id, study_key, lock=True)
        fixed = checked_fixed(request.fixed, study.spec.space)
        stopped = stop_if_due(study, store=store, now=now)
        if stopped is not study:
            store.studies.save(stopped)
            study = stopped
        if study.state is not StudyState.ACTIVE:
            _settle(request, [], study=study, store=store)
            store.commit()
            return _closed(study)
        if request.push is not None and not store.pushes.is_announced(request.push, study.id):
            return ClaimReply(study_id=study.id, trials=(), study_state=study.state, reason="push_spent")
        # a pushed study's workers are its slots, which the relay notes
        if request.push is None and SIGHTINGS.is_due(study.id, request.worker, request.count):
            store.records.saw_worker(study.id, request.worker, slots=request.count, now=now)
        given, study = _give(study, request, fixed=fixed, store=store, now=now)
        wanting = request.count - len(given)
        _ask_for_compute(study, fixed=fixed, wanting=wanting, store=store, now=now)
        if given:
            store.studies.save(replace(study, updated_at=now))
        _settle(request, given, study=study, store=store)
        store.commit()
    return _reply(study, given, wanting)


def checked_fixed(fixed: Mapping[str, Any], space: SearchSpace) -> dict[str, Any]:
    """The fixed values in their canonical form. Raises: Invalid."""
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for name, value in fixed.items():
        if name not in space:
            problems.append(Problem(f"fixed.{name}", "is not a parameter of this study"))
        elif reason := space[name].refuses(value):
            problems.append(Problem(f"fixed.{name}", reason, space[name].expects()))
        else:
            values[name] = space[name].canonical(value)
    if problems:
        raise Invalid(problems)
    return values


def fixed_key(fixed: Mapping[str, Any]) -> str:
    """Digest of fixed values; empty for none."""
    if not fixed:
        return ""
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:32]


def _settle(request: ClaimRequest, given: list[Trial], *, study: Study, store: Store) -> None:
    """The push stands for its trial from now on, or is spent where there was none."""
    if request.push is None:
        return
    if given:
        store.pushes.take(request.push, given[0].id)
    else:
        store.pushes.spend(study.id, [request.push])


def _closed(study: Study) -> ClaimReply:
    paused = study.state is StudyState.PAUSED
    reason = "paused" if paused else f"study_{study.state.value.lower()}"
    return ClaimReply(study_id=study.id, trials=(), study_state=study.state, reason=reason, may_wait=paused)


def _give(
    study: Study, request: ClaimRequest, *, fixed: Mapping[str, Any], store: Store, now: datetime
) -> tuple[list[Trial], Study]:
    given: list[Trial] = []
    if request.reclaim and study.n(TrialState.RUNNING):
        own = store.trials.running_of(study.id, request.worker)[: request.count]
        given += [_take_back(trial, store=store, now=now) for trial in own]
    retries = min(request.count - len(given), n_parallel_left(study))
    if retries > 0 and study.n(TrialState.QUEUED) and not fixed:
        for trial in store.trials.queued(study.id, limit=retries):
            given.append(_lease(trial, request, study=study, store=store, now=now))
            study = study.tallied(TrialState.QUEUED, TrialState.RUNNING)
    startable, _ = n_startable(study)
    limit = min(request.count - len(given), startable)
    if limit > 0:
        taken = store.suggestions.take(study, fixed_key=fixed_key(fixed), limit=limit)
        for suggestion in taken:
            trial = _started(suggestion, study=study, now=now)
            store.suggestions.save([suggestion.moved_to(SuggestionState.CLAIMED, trial_id=trial.id)])
            study = replace(study.tallied(None, TrialState.RUNNING), next_number=study.next_number + 1)
            given.append(_lease(trial, request, study=study, store=store, now=now, is_new=True))
    return given, study


def _started(suggestion: Suggestion, *, study: Study, now: datetime) -> Trial:
    enqueued = suggestion.source is SuggestionSource.ENQUEUED
    return Trial(
        id=TrialId(new_id()),
        study_id=study.id,
        number=study.next_number,
        state=TrialState.QUEUED,
        parameters=suggestion.parameters,
        source=TrialSource.ENQUEUED if enqueued else TrialSource.SUGGESTION,
        provenance=suggestion.provenance,
        suggestion_id=suggestion.id,
        created_at=now,
        updated_at=now,
    )


def _take_back(trial: Trial, *, store: Store, now: datetime) -> Trial:
    """The worker's own trial under a new token: an older process of that name is fenced off."""
    renewed = trial.renewed(now=now, lease=new_lease_token())
    store.trials.save(renewed)
    store.trials.renew_attempt(renewed, now=now)
    return renewed


def _lease(
    trial: Trial, request: ClaimRequest, *, study: Study, store: Store, now: datetime, is_new: bool = False
) -> Trial:
    seconds = float(request.lease_seconds or study.spec.retry.lease_seconds)
    leased = trial.leased(request.worker, new_lease_token(), seconds=seconds, now=now)
    if is_new:
        store.trials.add([leased])
    else:
        store.trials.save(leased)
    store.trials.add_attempt(
        Attempt(
            trial_id=leased.id,
            number=leased.attempt,
            worker=request.worker,
            lease=leased.lease or new_lease_token(),
            started_at=now,
            last_heartbeat_at=now,
            lease_expires_at=now + timedelta(seconds=seconds),
        )
    )
    store.records.add_event(
        Event(
            study_id=study.id,
            trial_id=leased.id,
            kind=EventKind.TRIAL_STARTED,
            payload={"number": leased.number, "worker": request.worker, "attempt": leased.attempt},
            at=now,
        )
    )
    return leased


def _ask_for_compute(
    study: Study, *, fixed: Mapping[str, Any], wanting: int, store: Store, now: datetime
) -> None:
    if fixed:
        if wanting > 0 and n_startable(study)[0] > 0:
            payload = {"fixed": dict(fixed), "count": min(wanting, MAX_SUGGESTIONS_A_JOB)}
            request_compute(study, store=store, now=now, payload=payload)
        return
    if wanting <= 0 and not looks_at_data(study) and study.next_number % TIMELESS_CHECK:
        # so many lie ready that they need not be counted at every claim
        return
    n_slots = store.records.n_workers(study.id, since=now - WORKER_MEMORY)
    if is_short(study, n_fresh=store.suggestions.n_fresh(study), n_slots=n_slots):
        request_compute(study, store=store, now=now)


def _reply(study: Study, given: list[Trial], wanting: int) -> ClaimReply:
    startable, limited_by = n_startable(study)
    limited = limited_by if wanting > 0 and startable <= 0 else None
    if given:
        return ClaimReply(study_id=study.id, trials=tuple(given), study_state=study.state, limited_by=limited)
    reason = {"parallelism": "parallelism", "budget": "budget_in_flight", None: "preparing"}[limited]
    return ClaimReply(
        study_id=study.id,
        trials=(),
        study_state=study.state,
        reason=reason,
        limited_by=limited,
        may_wait=True,
    )
