"""Step 6: load the data, fit, propose, and write suggestions and fit in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from bo_service.domain.ids import FitId, SuggestionId, new_id
from bo_service.domain.job import Job, JobState
from bo_service.domain.proposal import Proposal, ProposalRequest, StudyView
from bo_service.domain.records import Event, EventKind, Fit
from bo_service.domain.stopping import n_startable, reason_to_stop
from bo_service.domain.study import Study, StudyState
from bo_service.domain.suggestion import Suggestion, SuggestionSource, SuggestionState
from bo_service.domain.trial import Provenance
from bo_service.orchestrator.bookkeeping import (
    WORKER_MEMORY,
    looks_at_data,
    n_timeless_to_prepare,
    n_to_prepare,
    request_compute,
    stopped_study,
)
from bo_service.orchestrator.claim_trials import MAX_SUGGESTIONS_A_JOB, fixed_key
from bo_service.orchestrator.contention import retried
from bo_service.orchestrator.ports import Store, UnitOfWork
from bo_service.orchestrator.study_view import KnownTrials, lasting, load_view

Generate = Callable[[StudyView, ProposalRequest, bytes | None], Proposal]
"""generation.strategy.propose: (view, request, warm state) -> proposal."""

BREAKER_REST: Final = timedelta(minutes=10)
"""An open breaker lets one job try the model again after this long."""

DATA_FREE_LEVELS: Final = 10_000
"""A model-free generator looks at the data only where the space is small enough to repeat itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What to generate, and from what."""

    study: Study
    view: StudyView
    request: ProposalRequest
    is_timeless: bool
    needs_data: bool
    key: str
    warm_fit_id: FitId | None
    warm_state: bytes | None


def advance_study(job: Job, *, uow: UnitOfWork, generate: Generate, known: KnownTrials) -> int:
    """Run one Advance job that the caller has claimed; returns how many suggestions were written.

    Running it twice is harmless: what the first run wrote is found fresh, and a void token writes nothing.
    """
    with uow(read_only=True) as store:
        plan = _plan(job, known=known, store=store)
    if plan is None:
        _finish_idle(job, uow=uow)
        return 0
    proposal = generate(plan.view, plan.request, plan.warm_state)
    # a fit may have taken minutes: who stood in its way is let pass first
    return retried(lambda: _finish(job, plan, proposal, uow=uow))


def _finish(job: Job, plan: _Plan, proposal: Proposal, *, uow: UnitOfWork) -> int:
    """Write what was generated and end the job in one transaction; 0 where the job is no longer this worker's."""
    with uow() as store:
        study = store.studies.get(plan.study.id, lock=True)
        current = store.jobs.get(job.id)
        if current.token != job.token or current.state is not JobState.RUNNING:
            return 0
        n_written = _write(plan, proposal, study=study, store=store)
        finish_job(current, store=store)
        store.commit()
    return n_written


def _plan(job: Job, *, known: KnownTrials, store: Store) -> _Plan | None:
    """What this job should generate, or None where enough lies ready."""
    now = store.now()
    study = store.studies.get(job.study_id)
    if study.state is not StudyState.ACTIVE or reason_to_stop(study, now=now):
        return None
    fixed = job.payload.get("fixed", {})
    key = fixed_key(fixed)
    prepared = list(store.suggestions.prepared(study.id))
    kept = lasting(prepared, study=study, fixed_key=key)
    n_ready = sum(s.fixed_key == key for s in kept)
    count, is_timeless = _how_many(
        job, study, n_prepared=len(prepared), n_ready=n_ready, store=store, now=now
    )
    if count <= 0:
        return None
    needs_data = _needs_data(study, is_timeless=is_timeless)
    # an enqueued trial is pending too: the user will have it evaluated
    pending = (*store.trials.open_parameters(study.id), *(s.parameters for s in kept)) if needs_data else ()
    warm = store.records.latest_fit(study.id) if needs_data and not is_timeless else None
    view = load_view(
        study, pending=pending, n_prepared=len(prepared), needs_data=needs_data, known=known, store=store
    )
    return _Plan(
        study=study,
        view=view,
        request=ProposalRequest(count=count, fixed=fixed, fallback_reason=open_breaker(study, now=now)),
        is_timeless=is_timeless,
        needs_data=needs_data,
        key=key,
        warm_fit_id=warm.id if warm else None,
        warm_state=warm.state if warm else None,
    )


def open_breaker(study: Study, *, now: datetime) -> str | None:
    """Why the model is bypassed now; None again once the breaker has rested."""
    if study.breaker_reason is None or study.breaker_opened_at is None:
        return None
    return study.breaker_reason if now - study.breaker_opened_at < BREAKER_REST else None


def _needs_data(study: Study, *, is_timeless: bool) -> bool:
    return not is_timeless or study.spec.space.n_configurations <= DATA_FREE_LEVELS


def _how_many(
    job: Job, study: Study, *, n_prepared: int, n_ready: int, store: Store, now: datetime
) -> tuple[int, bool]:
    """How many candidates to make, and whether they are made without looking at data."""
    if "fixed" in job.payload:
        return int(job.payload["count"]) - n_ready, False
    n_slots = store.records.n_workers(study.id, since=now - WORKER_MEMORY)
    left = min(n_startable(study)[0], MAX_SUGGESTIONS_A_JOB)
    if not looks_at_data(study):
        return n_timeless_to_prepare(study, n_slots=n_slots) - n_ready, True
    n_initial = _n_initial_left(study, n_prepared=n_prepared)
    if n_initial > 0:
        return min(n_initial, left), True
    return min(n_to_prepare(study, n_slots=n_slots), left) - n_ready, False


def _n_initial_left(study: Study, *, n_prepared: int) -> int:
    """Points of the initial design that are neither started nor prepared; below zero where others came instead."""
    return study.spec.n_initial - study.n_trials - n_prepared


def _write(plan: _Plan, proposal: Proposal, *, study: Study, store: Store) -> int:
    """Save the fit and those candidates that nobody started meanwhile; returns how many."""
    now = store.now()
    fit_id = FitId(new_id())
    space = study.spec.space
    taken = _taken(plan, proposal, study=study, store=store)
    wanted = proposal.candidates[: _n_still_wanted(plan, study=study, store=store)]
    new = [
        Suggestion(
            id=SuggestionId(new_id()),
            study_id=study.id,
            parameters=candidate.parameters,
            provenance=Provenance(
                generator=candidate.generator,
                surrogate=proposal.fit.surrogate,
                fit_id=fit_id,
                data_version=plan.view.data_version,
                seed=plan.view.seed,
                acquisition_value=candidate.acquisition_value,
                fallback_reason=candidate.fallback_reason,
                predictions={name: [m.value, m.sem] for name, m in candidate.predictions.items()},
            ),
            data_version=plan.view.data_version,
            is_timeless=plan.is_timeless,
            fixed_key=plan.key,
            position=position,
            created_at=now,
        )
        for position, candidate in enumerate(wanted)
        if space.key(candidate.parameters) not in taken
    ]
    if not plan.is_timeless:
        store.suggestions.supersede(study.id, before_version=plan.view.data_version, fixed_key=plan.key)
        store.suggestions.supersede(study.id, before_version=study.data_version - study.staleness)
    store.records.add_fit(_fit(fit_id, plan, proposal, study=study, now=now))
    store.suggestions.add(new)
    drawn = sum(c.acquisition_value is None for c in proposal.candidates)
    study = replace(study, design_index=max(study.design_index, plan.view.design_index + drawn))
    study = _breaker_after(study, plan, proposal)
    study = _stopped_if_exhausted(study, plan, proposal, store=store, now=now)
    store.studies.save(replace(study, updated_at=now))
    store.records.add_event(_event(plan, proposal, n_written=len(new), study=study, now=now))
    return len(new)


def _n_still_wanted(plan: _Plan, *, study: Study, store: Store) -> int:
    """What trials given meanwhile leave of the initial design; else all that was asked for."""
    if not plan.is_timeless or not looks_at_data(study):
        return plan.request.count
    return max(_n_initial_left(study, n_prepared=len(store.suggestions.prepared(study.id))), 0)


def _taken(plan: _Plan, proposal: Proposal, *, study: Study, store: Store) -> set[str]:
    """Digests of what was started or prepared while the fit ran.

    What the rescue prepared meanwhile gives way to a model's points.
    """
    if not plan.needs_data:
        return set()
    space = study.spec.space
    prepared = store.suggestions.prepared(study.id)
    if any(c.fallback_reason is None for c in proposal.candidates):
        rescued = [s for s in prepared if s.source is SuggestionSource.GENERATED and not s.provenance.fit_id]
        store.suggestions.save([s.moved_to(SuggestionState.SUPERSEDED) for s in rescued])
        prepared = [s for s in prepared if s not in rescued]
    staying = lasting(list(prepared), study=study, fixed_key=plan.key)
    return {space.key(p) for p in (*store.trials.open_parameters(study.id), *(s.parameters for s in staying))}


def _stopped_if_exhausted(
    study: Study, plan: _Plan, proposal: Proposal, *, store: Store, now: datetime
) -> Study:
    """STOPPED where every configuration was tried and none is under way.

    Points that wait for a worker with fixed values are taken back first, and may then be given to anybody.
    """
    nothing_left = proposal.fit.diagnostics.get("exhausted") and not proposal.candidates and not plan.key
    is_outdated = (study.data_version, study.spec_version) != (
        plan.view.data_version,
        plan.study.spec_version,
    )
    if not nothing_left or is_outdated or study.n_open or study.state is not StudyState.ACTIVE:
        return study
    if plan.view.pending:
        if store.suggestions.supersede(study.id, before_version=study.data_version + 1):
            request_compute(study, store=store, now=now)
        return study
    reason = "exhausted: every configuration of the search space has been tried"
    return stopped_study(study, reason, store=store, now=now)


def _breaker_after(study: Study, plan: _Plan, proposal: Proposal) -> Study:
    """A closed breaker after a fit that used the model; unchanged otherwise."""
    used_model = not plan.is_timeless and all(c.fallback_reason is None for c in proposal.candidates)
    if used_model and plan.request.fallback_reason is None and study.breaker_reason is not None:
        return replace(study, breaker_reason=None, breaker_opened_at=None)
    return study


def _fit(fit_id: FitId, plan: _Plan, proposal: Proposal, *, study: Study, now: datetime) -> Fit:
    fit = proposal.fit
    return Fit(
        id=fit_id,
        study_id=study.id,
        data_version=plan.view.data_version,
        surrogate=fit.surrogate,
        options=study.spec.surrogate.options,
        inputs=_inputs(plan),
        state=fit.state,
        diagnostics=fit.diagnostics,
        seconds=fit.seconds,
        device=fit.device,
        created_at=now,
    )


def _inputs(plan: _Plan) -> Mapping[str, Any]:
    """Everything beside the trials that went in: with these the fit can be run again."""
    return {
        "spec_version": plan.study.spec_version,
        "data_version": plan.view.data_version,
        "seed": plan.view.seed,
        "count": plan.request.count,
        "fixed": dict(plan.request.fixed),
        "fallback_reason": plan.request.fallback_reason,
        "pending": [dict(p) for p in plan.view.pending],
        "n_started": plan.view.n_started,
        "design_index": plan.view.design_index,
        "needs_data": plan.needs_data,
        "warm_fit_id": plan.warm_fit_id,
    }


def _event(plan: _Plan, proposal: Proposal, *, n_written: int, study: Study, now: datetime) -> Event:
    fallback = next((c.fallback_reason for c in proposal.candidates if c.fallback_reason), None)
    return Event(
        study_id=study.id,
        kind=EventKind.FIT_FINISHED if not plan.is_timeless else EventKind.SUGGESTIONS_PREPARED,
        payload={
            "surrogate": proposal.fit.surrogate,
            "data_version": plan.view.data_version,
            "n_suggestions": n_written,
            "seconds": round(proposal.fit.seconds, 4),
            "device": proposal.fit.device,
            "fallback_reason": fallback,
        },
        at=now,
    )


def finish_job(job: Job, *, store: Store) -> None:
    """DONE, or QUEUED once more where something changed meanwhile."""
    now = store.now()
    job = replace(job, n_crashes=0)
    store.jobs.save(job.requeued(now=now) if job.is_dirty else job.done(now=now))


def _finish_idle(job: Job, *, uow: UnitOfWork) -> None:
    with uow() as store:
        store.studies.get(job.study_id, lock=True)
        current = store.jobs.get(job.id)
        if current.token == job.token and current.state is JobState.RUNNING:
            finish_job(current, store=store)
            store.commit()
