"""The reaper: leases and jobs that ran out go back to work, or end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from bo_service.domain.ids import LeaseToken
from bo_service.domain.job import MAX_CRASHES, Job, JobState
from bo_service.domain.records import Event, EventKind
from bo_service.domain.trial import AttemptExit, TrialState
from bo_service.orchestrator.bookkeeping import end_attempt_without_result, request_compute
from bo_service.orchestrator.ports import Store, UnitOfWork

BATCH: Final = 100
REPLIES_KEPT: Final = timedelta(days=1)
DONE_JOBS_KEPT: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """What one round of the reaper did."""

    n_trials: int = 0
    n_jobs: int = 0


def reap(*, uow: UnitOfWork) -> Reaped:
    """End every attempt whose lease is over and requeue every job whose worker is gone."""
    with uow(read_only=True) as store:
        now = store.now()
        expired = [trial.id for trial in store.trials.expired(now=now, limit=BATCH)]
        jobs = [job.id for job in store.jobs.expired(now=now)]
    n_trials = 0
    for trial_id in expired:
        with uow() as store:
            study = store.studies.get(store.trials.get(trial_id).study_id, lock=True)
            trial, now = store.trials.get(trial_id), store.now()
            # the worker may have been heard of between the two transactions
            if trial.state is TrialState.RUNNING and trial.lease_expires_at and trial.lease_expires_at < now:
                end_attempt_without_result(
                    trial,
                    AttemptExit.LEASE_EXPIRED,
                    study=study,
                    store=store,
                    now=now,
                    reason=f"no heartbeat from {trial.worker} for {trial.lease_seconds:g} s",
                    may_retry=True,
                )
                store.commit()
                n_trials += 1
    n_jobs = 0
    for job_id in jobs:
        with uow() as store:
            now = store.now()
            job = store.jobs.get(job_id)
            if job.state is JobState.RUNNING and job.lease_expires_at and job.lease_expires_at < now:
                crash_job(job, "its worker stopped renewing the lease", store=store, now=now)
                store.commit()
                n_jobs += 1
    return Reaped(n_trials=n_trials, n_jobs=n_jobs)


def requeue_orphans(token_prefix: str, *, uow: UnitOfWork) -> int:
    """Requeue jobs held by an executor that is known to be dead: its successor calls this when it starts."""
    with uow() as store:
        orphans: Sequence[Job] = store.jobs.held_under(token_prefix)
        for job in orphans:
            crash_job(job, "its worker died", store=store, now=store.now())
        store.commit()
    return len(orphans)


def fail_job(job: Job, error: str, *, uow: UnitOfWork) -> None:
    """Count a job that raised as crashed, unless its token is void."""
    with uow() as store:
        current = store.jobs.get(job.id)
        if current.token == job.token and current.state is JobState.RUNNING:
            crash_job(current, error, store=store, now=store.now())
            store.commit()


def crash_job(job: Job, error: str, *, store: Store, now: datetime) -> None:
    """QUEUED again; after too many crashes DEAD, the study's breaker open and a fresh job queued."""
    study = store.studies.get(job.study_id, lock=True)
    n_crashes = job.n_crashes + 1
    # a job that tries the model again while the breaker rests gets no second chance
    is_dead = n_crashes >= MAX_CRASHES or study.breaker_reason is not None
    store.jobs.save(
        replace(
            job,
            state=JobState.DEAD if is_dead else JobState.QUEUED,
            token=None,
            lease_expires_at=None,
            n_crashes=n_crashes,
            error=error[:2000],
            updated_at=now,
        )
    )
    store.records.add_event(
        Event(
            study_id=study.id,
            kind=EventKind.JOB_CRASHED,
            payload={"job_id": job.id, "n_crashes": n_crashes, "error": error[:500]},
            at=now,
        )
    )
    if is_dead:
        reason = f"breaker: {n_crashes} crashes of one job, the last: {error[:200]}"
        study = replace(study, breaker_reason=reason, breaker_opened_at=now, updated_at=now)
        store.studies.save(study)
        store.records.add_event(
            Event(study_id=study.id, kind=EventKind.BREAKER, payload={"reason": reason}, at=now)
        )
        request_compute(study, store=store, now=now)


def renew_job(job: Job, *, seconds: float, uow: UnitOfWork) -> bool:
    """Keep a running job; False where its token is void."""
    with uow() as store:
        kept = store.jobs.renew(
            job.id, job.token or LeaseToken(""), lease_expires_at=store.now() + timedelta(seconds=seconds)
        )
        store.commit()
    return kept


def claim_job(token: LeaseToken, *, lease_seconds: float, uow: UnitOfWork) -> Job | None:
    """Take the oldest queued job, or None."""
    with uow() as store:
        job = store.jobs.claim(now=store.now(), lease_seconds=lease_seconds, token=token)
        if job is not None:
            store.commit()
    return job


def tidy(*, uow: UnitOfWork) -> None:
    """Forget replies and finished jobs nobody will ask for."""
    with uow() as store:
        now = store.now()
        store.records.forget_replies(before=now - REPLIES_KEPT)
        store.jobs.forget_done(before=now - DONE_JOBS_KEPT)
        store.commit()
