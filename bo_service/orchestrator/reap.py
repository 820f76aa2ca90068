"""The reaper: leases and jobs that ran out go back to work, or end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from bo_service.domain.ids import JobId, LeaseToken, TrialId
from bo_service.domain.job import MAX_CRASHES, Job, JobState, pause_after
from bo_service.domain.records import Event, EventKind
from bo_service.domain.study import Study
from bo_service.domain.trial import AttemptExit, TrialState
from bo_service.orchestrator.bookkeeping import end_attempt_without_result
from bo_service.orchestrator.notify import notify_breaker
from bo_service.orchestrator.ports import Store, UnitOfWork

BATCH: Final = 100
REPLIES_KEPT: Final = timedelta(days=1)
DONE_JOBS_KEPT: Final = timedelta(days=1)
DELIVERIES_KEPT: Final = timedelta(days=7)


def expired(*, uow: UnitOfWork) -> tuple[list[TrialId], list[Job]]:
    """Trials and jobs whose lease is over: give each to `reap_trial` or `reap_job`."""
    with uow(read_only=True) as store:
        now = store.now()
        trials = [trial.id for trial in store.trials.expired(now=now, limit=BATCH)]
        return trials, list(store.jobs.expired(now=now))


def reap_trial(trial_id: TrialId, *, uow: UnitOfWork) -> bool:
    """End the attempt of a worker that is silent; False where it was heard of meanwhile."""
    with uow() as store:
        trial, study = store.trials.with_study(trial_id, lock=True)
        now = store.now()
        if trial.state is not TrialState.RUNNING or not _is_over(trial.lease_expires_at, now):
            return False
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
    return True


def reap_job(job: Job, *, uow: UnitOfWork) -> bool:
    """Requeue the job of a worker that is silent; False where it was heard of meanwhile."""
    with uow() as store:
        study, current = _locked(job, store)
        now = store.now()
        if current.state is not JobState.RUNNING or not _is_over(current.lease_expires_at, now):
            return False
        _crash(current, "its worker stopped renewing the lease", study=study, store=store, now=now)
        store.commit()
    return True


def _is_over(lease_expires_at: datetime | None, now: datetime) -> bool:
    return lease_expires_at is not None and lease_expires_at < now


def _locked(job: Job, store: Store) -> tuple[Study, Job]:
    """The job's study and the job as it is now, locked in the order every transaction keeps."""
    study = store.studies.get(job.study_id, lock=True)
    return study, store.jobs.get(job.id)


def requeue_orphans(token_prefix: str, *, is_dead: Callable[[LeaseToken], bool], uow: UnitOfWork) -> int:
    """Requeue jobs of executors that died without a word: their successor calls this when it starts."""
    with uow(read_only=True) as store:
        orphans = [job for job in store.jobs.held_under(token_prefix) if job.token and is_dead(job.token)]
    return sum(crash_job(job, "its worker died", uow=uow) for job in orphans)


def release_job(job: Job, *, pause: timedelta = timedelta(0), uow: UnitOfWork) -> bool:
    """Give a job back unfinished, because its worker was told to stop or lost its database; nothing is counted."""
    with uow() as store:
        _, current = _locked(job, store)
        if current.token != job.token or current.state is not JobState.RUNNING:
            return False
        store.jobs.save(current.requeued(now=store.now(), pause=pause))
        store.commit()
    return True


def crash_job(job: Job, error: str, *, uow: UnitOfWork) -> bool:
    """Count a job that raised, or whose worker died, as crashed; False where its token is void."""
    with uow() as store:
        study, current = _locked(job, store)
        if current.token != job.token or current.state is not JobState.RUNNING:
            return False
        _crash(current, error, study=study, store=store, now=store.now())
        store.commit()
    return True


def _crash(job: Job, error: str, *, study: Study, store: Store, now: datetime) -> None:
    """QUEUED again after a pause that grows; the crash too many opens the study's breaker as well.

    With the breaker open the next run bypasses the model. Where even that fails, the pauses keep the job from
    burning the machine until somebody mends the cause.
    """
    n_crashes = job.n_crashes + 1
    store.jobs.save(
        replace(job.requeued(now=now, pause=pause_after(n_crashes)), n_crashes=n_crashes, error=error[:2000])
    )
    store.records.add_event(
        Event(
            study_id=study.id,
            kind=EventKind.JOB_CRASHED,
            payload={
                "job_id": job.id,
                "n_crashes": n_crashes,
                "error": error[-500:],
                "surrogate": study.spec.surrogate.name,
            },
            at=now,
        )
    )
    is_news = study.breaker_reason is None
    # a job that tries the model again after the breaker's rest gets no second chance
    if n_crashes < MAX_CRASHES and is_news:
        return
    # a traceback says at its end what went wrong
    last = (error.strip().splitlines() or ["without a word"])[-1]
    reason = f"breaker: {n_crashes} crashes of one job, the last: {last[:300]}"
    opened = replace(study, breaker_reason=reason, breaker_opened_at=now, updated_at=now)
    store.studies.save(opened)
    if is_news:
        notify_breaker(opened, store=store, now=now)
        store.records.add_event(
            Event(study_id=study.id, kind=EventKind.BREAKER, payload={"reason": reason}, at=now)
        )


def renew_job(job: Job, *, seconds: float, uow: UnitOfWork) -> bool:
    """Keep a running job; False where its token is void."""
    with uow() as store:
        kept = store.jobs.renew(
            job.id, job.token or LeaseToken(""), lease_expires_at=store.now() + timedelta(seconds=seconds)
        )
        store.commit()
    return kept


def claim_job(
    token: LeaseToken, *, lease_seconds: float, job_id: JobId | None = None, uow: UnitOfWork
) -> Job | None:
    """Take this job, or the one that waits longest; None where it is not due."""
    with uow() as store:
        job = store.jobs.claim(now=store.now(), lease_seconds=lease_seconds, token=token, job_id=job_id)
        if job is not None:
            store.commit()
    return job


def tidy(*, uow: UnitOfWork) -> None:
    """Forget replies, finished jobs and old deliveries nobody will ask for."""
    with uow() as store:
        now = store.now()
        store.records.forget_replies(before=now - REPLIES_KEPT)
        store.jobs.forget_done(before=now - DONE_JOBS_KEPT)
        store.jobs.forget_processes(before=now - DONE_JOBS_KEPT)
        store.webhooks.forget_deliveries(before=now - DELIVERIES_KEPT)
        store.commit()
