"""Jobs on both databases: coalesced, fenced, fair, and behind a breaker when they crash."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import event, text

import bo_service.orchestrator.reap as reaping
from bo_service.domain.errors import Contention, Unavailable
from bo_service.domain.ids import LeaseToken
from bo_service.domain.job import Job, JobKind, JobState, pause_after
from bo_service.domain.proposal import Proposal, ProposalRequest, StudyView
from bo_service.domain.records import EventKind
from bo_service.domain.trial import TrialState
from bo_service.orchestrator.advance_study import advance_study
from bo_service.orchestrator.reap import claim_job, crash_job, release_job, requeue_orphans
from bo_service.orchestrator.rescue_claims import rescue_claims
from bo_service.orchestrator.study_view import KnownTrials
from tests.steps import claim, complete, draw, end_pause, fill, new_study, run_jobs
from workers.house import Housekeeper
from workers.runner import Runner
from workers.tasks import Desk


def test_jobs_of_a_study_are_coalesced_and_fenced(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    with services.uow() as store:
        for _ in range(3):
            store.jobs.enqueue(study.id, JobKind.ADVANCE, {}, now=store.now())
        store.commit()
    first = claim_job(LeaseToken("one"), lease_seconds=60, uow=services.uow)
    assert first is not None
    assert claim_job(LeaseToken("two"), lease_seconds=60, uow=services.uow) is None
    with services.uow() as store:
        store.jobs.enqueue(study.id, JobKind.ADVANCE, {}, now=store.now())
        assert store.jobs.get(first.id).is_dirty
        store.commit()
    assert requeue_orphans("one", is_dead=lambda _: True, uow=services.uow) == 1
    assert claim_job(LeaseToken("two"), lease_seconds=60, uow=services.uow) is None, "it rests first"
    end_pause(services, first.id)
    second = claim_job(LeaseToken("three"), lease_seconds=60, uow=services.uow)
    assert second is not None
    assert (second.id, second.n_crashes) == (first.id, 1)
    assert advance_study(first, uow=services.uow, generate=draw, known=KnownTrials()) == 0
    assert advance_study(second, uow=services.uow, generate=draw, known=KnownTrials()) > 0


def test_a_dirty_job_runs_once_more(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    job = claim_job(LeaseToken("one"), lease_seconds=60, uow=services.uow)
    assert job is not None
    with services.uow() as store:
        store.jobs.enqueue(study.id, JobKind.ADVANCE, {}, now=store.now())
        store.commit()
    advance_study(job, uow=services.uow, generate=draw, known=KnownTrials())
    with services.uow() as store:
        assert store.jobs.get(job.id).state is JobState.QUEUED


def test_trials_imported_during_a_fit_take_the_place_of_its_initial_points(
    services, project, make_spec
) -> None:
    study = new_study(services, project, make_spec, surrogate={"name": "gp"}, initial={"size": 4})
    job = claim_job(LeaseToken("one"), lease_seconds=60, uow=services.uow)
    assert job is not None

    def draw_slowly(view: StudyView, request: ProposalRequest, warm_state: bytes | None) -> Proposal:
        assert request.count == 4
        fill(services, study, 3)
        return draw(view, request, warm_state)

    assert advance_study(job, uow=services.uow, generate=draw_slowly, known=KnownTrials()) == 1
    with services.uow(read_only=True) as store:
        again = store.jobs.get(job.id, lock=False)
    assert again.state is JobState.QUEUED, "the import asks for another round"


def test_three_crashes_open_the_breaker_and_the_study_goes_on_labelled(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec, surrogate={"name": "gp"}, initial={"size": 1})
    for i in range(3):
        job = claim_job(LeaseToken(f"t{i}"), lease_seconds=60, uow=services.uow)
        assert job is not None
        assert crash_job(job, "out of memory", uow=services.uow)
        assert not crash_job(job, "out of memory", uow=services.uow), "its token is void"
        end_pause(services, job.id)
    with services.uow(read_only=True) as store:
        assert "out of memory" in (store.studies.get(study.id).breaker_reason or "")
    seen: list[str | None] = []

    def generate(view: StudyView, request: ProposalRequest, warm_state: bytes | None) -> Proposal:
        seen.append(request.fallback_reason)
        return draw(view, request, warm_state)

    job = claim_job(LeaseToken("next"), lease_seconds=60, uow=services.uow)
    assert job is not None
    advance_study(job, uow=services.uow, generate=generate, known=KnownTrials())
    assert seen[0] is not None
    assert "3 crashes" in seen[0]
    assert len(claim(services, study)) == 1


def test_a_job_that_always_fails_rests_longer_each_time(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    pauses = []
    for i in range(6):
        job = claim_job(LeaseToken(f"t{i}"), lease_seconds=60, uow=services.uow)
        assert job is not None
        crash_job(job, "no such plug-in", uow=services.uow)
        with services.uow(read_only=True) as store:
            crashed = store.jobs.get(job.id, lock=False)
        pauses.append((crashed.ready_at - crashed.updated_at).total_seconds())
        end_pause(services, job.id)
    assert pauses == [1, 2, 4, 8, 16, 32]
    assert pause_after(1000).total_seconds() == 600
    with services.uow(read_only=True) as store:
        kinds = [e.kind for e in store.records.events(study.id, after=0, limit=100)]
    assert kinds.count(EventKind.JOB_CRASHED) == 6
    assert kinds.count(EventKind.BREAKER) == 1


def test_a_released_job_counts_no_crash(services, project, make_spec) -> None:
    new_study(services, project, make_spec)
    for i in range(5):
        job = claim_job(LeaseToken(f"t{i}"), lease_seconds=60, uow=services.uow)
        assert job is not None
        assert job.n_crashes == 0
        assert release_job(job, uow=services.uow)
        assert not release_job(job, uow=services.uow)


def test_a_busy_study_does_not_starve_another(services, project, make_spec) -> None:
    busy = new_study(services, project, make_spec)
    job = claim_job(LeaseToken("one"), lease_seconds=60, uow=services.uow)
    assert job is not None
    other = new_study(services, project, make_spec)
    with services.uow() as store:
        store.jobs.enqueue(busy.id, JobKind.ADVANCE, {}, now=store.now())
        store.commit()
    advance_study(job, uow=services.uow, generate=draw, known=KnownTrials())
    order = [claim_job(LeaseToken(f"t{i}"), lease_seconds=60, uow=services.uow) for i in range(2)]
    assert [j.study_id for j in order if j] == [other.id, busy.id]


def test_what_cannot_be_reaped_does_not_keep_the_rest(services, project, make_spec, monkeypatch) -> None:
    study = new_study(services, project, make_spec)
    run_jobs(services)
    first, second = claim(services, study, count=2)
    with services.uow() as store:
        for trial in (first, second):
            store.trials.save(replace(trial, lease_expires_at=store.now() - timedelta(seconds=1)))
        store.commit()
    whole = reaping.end_attempt_without_result

    def partly(trial, *args, **options):
        if trial.id == first.id:
            raise RuntimeError("odd data")
        return whole(trial, *args, **options)

    monkeypatch.setattr(reaping, "end_attempt_without_result", partly)
    assert Housekeeper(services.uow).round() == 1
    with services.uow(read_only=True) as store:
        assert store.trials.get(second.id).state is TrialState.QUEUED


def test_behind_an_overdue_fit_waiting_workers_get_labelled_points(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec, surrogate={"name": "gp"}, initial={"size": 2})
    run_jobs(services)
    for trial in claim(services, study, count=2):
        complete(services, trial, project, 1.0)
    job = claim_job(LeaseToken("slow"), lease_seconds=60, uow=services.uow)
    assert job is not None
    assert claim(services, study) == ()
    assert rescue_claims(job, uow=services.uow, generate=draw) == 1
    (trial,) = claim(services, study)
    assert "fit_deadline" in (trial.provenance.fallback_reason or "")
    assert rescue_claims(job, uow=services.uow, generate=draw) == 0


def test_a_rested_breaker_lets_one_job_try_and_closes_when_it_succeeds(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec, surrogate={"name": "gp"}, initial={"size": 1})
    run_jobs(services)
    (trial,) = claim(services, study)
    complete(services, trial, project, 1.0)
    with services.uow() as store:
        found = store.studies.get(study.id, lock=True)
        long_ago = found.created_at - timedelta(hours=1)
        store.studies.save(replace(found, breaker_reason="breaker: test", breaker_opened_at=long_ago))
        store.commit()
    seen: list[str | None] = []

    def generate(view: StudyView, request: ProposalRequest, warm_state: bytes | None) -> Proposal:
        seen.append(request.fallback_reason)
        return draw(view, request, warm_state)

    job = claim_job(LeaseToken("try"), lease_seconds=60, uow=services.uow)
    assert job is not None
    advance_study(job, uow=services.uow, generate=generate, known=KnownTrials())
    assert seen == [None]
    with services.uow(read_only=True) as store:
        assert store.studies.get(study.id).breaker_reason is None


def test_a_message_for_a_job_that_a_request_holds_is_not_in_vain(services, project, make_spec) -> None:
    """A tell looks at the study's job under a lock; the worker that was told of the job waits for it."""
    if services.transactions.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    study = new_study(services, project, make_spec)
    with services.uow(read_only=True) as store:
        job = store.jobs.in_flight(study.id)
    assert job is not None
    with ThreadPoolExecutor(1) as pool:
        with services.uow() as store:
            store.jobs.enqueue(study.id, JobKind.ADVANCE, {}, now=store.now())
            taken = pool.submit(
                claim_job, LeaseToken("one"), lease_seconds=60, job_id=job.id, uow=services.uow
            )
            time.sleep(0.2)
            assert not taken.done()
            store.commit()
        found = taken.result(10)
    assert found is not None
    assert found.id == job.id


def test_messages_for_a_job_that_waits_come_less_and_less_often(services, project, make_spec) -> None:
    new_study(services, project, make_spec)
    with services.uow(read_only=True) as store:
        start = store.now()
    sent: list[float] = []
    for second in range(0, 3600, 5):
        with services.uow() as store:
            now = start + timedelta(seconds=second)
            if store.jobs.to_send(now=now, resend_after=timedelta(seconds=15), limit=10):
                sent.append(second)
            store.commit()
    assert sent[:5] == [0, 15, 45, 105, 225]
    assert {later - earlier for earlier, later in pairwise(sent[4:])} == {120}


def test_a_job_that_could_not_be_sent_is_due_at_once(services, project, make_spec) -> None:
    new_study(services, project, make_spec)
    with services.uow() as store:
        (job,) = store.jobs.to_send(now=store.now(), resend_after=timedelta(seconds=15), limit=10)
        assert not store.jobs.to_send(now=store.now(), resend_after=timedelta(seconds=15), limit=10)
        store.jobs.unsend([job.id])
        assert store.jobs.to_send(now=store.now(), resend_after=timedelta(seconds=15), limit=10)


def test_a_fit_whose_writing_stood_in_a_requests_way_is_written_all_the_same(
    services, project, make_spec
) -> None:
    """A deadlock in earnest: the fit's transaction locks study and job, the other one job and study."""
    if services.transactions.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    study = new_study(services, project, make_spec)
    job = claim_job(LeaseToken("one"), lease_seconds=60, uow=services.uow)
    assert job is not None
    engine = services.transactions.engine
    deadlocks: list[str] = []

    def cross(held: threading.Event) -> None:
        with engine.connect() as connection:
            # the server ends whoever looks for a deadlock first, after a second's waiting: the fit's transaction
            connection.execute(text("SET deadlock_timeout = '10s'"))
            connection.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR UPDATE"), {"id": job.id})
            held.set()
            time.sleep(0.3)
            connection.execute(text("SELECT 1 FROM studies WHERE id = :id FOR UPDATE"), {"id": study.id})
            connection.rollback()

    event.listen(engine, "handle_error", lambda context: deadlocks.append(str(context.original_exception)))
    held = threading.Event()
    other = threading.Thread(target=cross, args=(held,))

    def draw_then_meet(*given: Any) -> Proposal:
        other.start()
        held.wait(10)
        return draw(*given)

    written = advance_study(job, uow=services.uow, generate=draw_then_meet, known=KnownTrials())
    other.join()
    assert any("deadlock" in told for told in deadlocks), deadlocks
    assert written > 0
    with services.uow(read_only=True) as store:
        assert store.jobs.get(job.id, lock=False).state is JobState.DONE


@pytest.mark.parametrize("away", [Contention("in the way"), Unavailable("the database is away")])
def test_a_database_that_is_away_is_no_fault_of_the_model(services, project, make_spec, away) -> None:
    new_study(services, project, make_spec)

    class Cut(Desk):
        def run(self, job: Job) -> None:  # noqa: ARG002
            raise away

    with services.uow(read_only=True) as store:
        (job,) = store.jobs.to_send(now=store.now(), resend_after=timedelta(seconds=15), limit=10)
    assert Runner(services=services, desk=Cut(uow=services.uow)).run(job.id)
    with services.uow(read_only=True) as store:
        back = store.jobs.get(job.id, lock=False)
        assert (back.state, back.n_crashes) == (JobState.QUEUED, 0)
        assert back.ready_at > store.now(), "it rests first"
