"""Messages twice and in the wrong order, sleepers, skewed clocks, full disks, exhausted pools."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event

import bo_service.storage.engine as engine_module
from bo_service.bootstrap import Services, broken_invariants, build_services, upgrade_database
from bo_service.domain.errors import LeaseLost, TrialClosed, Unavailable
from bo_service.domain.ids import JobId, LeaseToken, ProjectId
from bo_service.domain.job import JobState
from bo_service.domain.records import EventKind
from bo_service.orchestrator.advance_study import advance_study
from bo_service.orchestrator.reap import claim_job
from bo_service.orchestrator.study_view import KnownTrials
from bo_service.settings import Settings
from tests.conftest import _fresh_postgres
from tests.steps import claim, complete, draw, new_study
from workers.house import Housekeeper
from workers.runner import Runner
from workers.tasks import Desk

pytestmark = [pytest.mark.faults]


def all_jobs(services: Services) -> list[str]:
    from bo_service.storage.jobs import JOBS

    with services.transactions(read_only=True) as (connection, _):
        return [row.id for row in connection.execute(JOBS.select())]


def test_messages_twice_and_in_any_order_run_each_job_once(services, project, make_spec) -> None:
    studies = [new_study(services, project, make_spec, name=f"s{i}") for i in range(6)]
    messages = all_jobs(services) * 4
    random.Random(3).shuffle(messages)
    runner = Runner(services=services, desk=Desk(uow=services.uow))
    with ThreadPoolExecutor(4) as pool:
        ran = list(pool.map(runner.run, messages))
    assert sum(ran) == len(studies)
    for study in studies:
        with services.uow(read_only=True) as store:
            assert len(store.suggestions.prepared(study.id)) >= 1
    assert broken_invariants(services) == []


def test_a_message_for_a_job_that_is_gone_does_nothing(services) -> None:
    assert not Runner(services=services, desk=Desk(uow=services.uow)).run("no such job")


def let_the_lease_end(services: Services, study_id: str) -> None:
    """What waiting for the lease would do."""
    from bo_service.storage.trials import TRIALS

    with services.transactions(read_only=False) as (connection, commit):
        long_ago = services.transactions.now(connection) - timedelta(minutes=5)
        connection.execute(
            TRIALS.update().where(TRIALS.c.study_id == study_id).values(lease_expires_at=long_ago)
        )
        commit()


def let_the_jobs_end(services: Services) -> int:
    """What waiting for the leases of all running jobs would do; returns how many there are."""
    from bo_service.storage.jobs import JOBS

    with services.transactions(read_only=False) as (connection, commit):
        long_ago = services.transactions.now(connection) - timedelta(minutes=5)
        running = JOBS.update().where(JOBS.c.state == JobState.RUNNING.value)
        n = connection.execute(running.values(lease_expires_at=long_ago)).rowcount
        commit()
    return n


def test_two_housekeepers_send_what_was_lost_back_to_work_once(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    runner = Runner(services=services, desk=Desk(uow=services.uow))
    runner.run(all_jobs(services)[0])
    trials = [trial for i in range(12) for trial in claim(services, study, f"w{i}")]
    others = [new_study(services, project, make_spec, name=f"other-{i}") for i in range(6)]
    while (job := claim_job(LeaseToken("gone"), lease_seconds=60, uow=services.uow)) is not None:
        assert job.study_id in {study.id, *(other.id for other in others)}
    n_jobs = let_the_jobs_end(services)
    let_the_lease_end(services, study.id)
    both = [build_services(services.settings) for _ in range(2)]
    together = threading.Barrier(2)

    def round_of(house: Services) -> int:
        together.wait(60)
        return Housekeeper(house.uow).round()

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(round_of, both)) == len(trials) + n_jobs
    with services.uow(read_only=True) as store:
        for trial in trials:
            kept = store.trials.get(trial.id)
            assert (kept.state.value, kept.n_attempts) == ("QUEUED", 1)
        events = store.records.events(study.id, after=0, limit=500)
        jobs = [store.jobs.get(JobId(job_id), lock=False) for job_id in all_jobs(services)]
    requeued = [event.trial_id for event in events if event.kind is EventKind.TRIAL_REQUEUED]
    assert sorted(requeued) == sorted(trial.id for trial in trials)
    assert [job.n_crashes for job in jobs if job.state is JobState.QUEUED] == [1] * n_jobs
    assert broken_invariants(services) == []
    for house in both:
        house.close()


def test_a_worker_that_slept_past_its_lease_is_told_so(services, project: ProjectId, make_spec) -> None:
    study = new_study(services, project, make_spec)
    Runner(services=services, desk=Desk(uow=services.uow)).run(all_jobs(services)[0])
    (asleep,) = claim(services, study, "asleep")
    let_the_lease_end(services, study.id)
    Housekeeper(services.uow).round()
    (again,) = claim(services, study, "another")
    assert again.id == asleep.id
    with pytest.raises(LeaseLost):
        complete(services, asleep, project, 2.0)
    complete(services, again, project, 1.0)
    with pytest.raises(TrialClosed):
        complete(services, asleep, project, 3.0)
    with services.uow(read_only=True) as store:
        assert store.trials.get(asleep.id).measurements["loss"].value == 1.0
    assert broken_invariants(services) == []


def test_a_fit_that_slept_past_its_lease_is_dropped(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    sleeper = claim_job(LeaseToken("sleeper"), lease_seconds=60, uow=services.uow)
    assert sleeper is not None

    def overtaken(*given):
        # while it computes, its lease ends and another worker does the job
        with services.uow() as store:
            job = store.jobs.get(sleeper.id)
            store.jobs.save(replace(job, lease_expires_at=store.now() - timedelta(minutes=5)))
            store.commit()
        Housekeeper(services.uow).round()
        end_rest(services, sleeper.id)
        assert Runner(services=services, desk=Desk(uow=services.uow)).run(sleeper.id)
        return draw(*given)

    advance_study(sleeper, uow=services.uow, generate=overtaken, known=KnownTrials())
    with services.uow(read_only=True) as store:
        assert store.jobs.get(sleeper.id, lock=False).state is JobState.DONE
        prepared = store.suggestions.prepared(study.id)
    assert len({s.position for s in prepared}) == len(prepared)
    assert broken_invariants(services) == []


def end_rest(services: Services, job_id: str) -> None:
    with services.uow() as store:
        store.jobs.save(replace(store.jobs.get(job_id), ready_at=store.now()))
        store.commit()


@pytest.mark.parametrize("hours", [-30, 30])
@pytest.mark.postgres
def test_a_machine_whose_clock_is_wrong_goes_by_the_server(
    postgres_url: str, tmp_path, monkeypatch, hours: int, make_spec
) -> None:
    settings = Settings(home=tmp_path, database_url=_fresh_postgres(postgres_url))
    upgrade_database(settings)
    skew = timedelta(hours=hours)

    class SkewedClock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + skew

    right, wrong = build_services(settings), build_services(settings)
    with right.uow(read_only=True) as store:
        there = store.now()
    monkeypatch.setattr(engine_module, "datetime", SkewedClock)
    with wrong.uow(read_only=True) as store:
        here = store.now()
    assert abs(here - there) < timedelta(seconds=2)
    assert abs(here - datetime.now(UTC)) < timedelta(seconds=2)
    right.close()
    wrong.close()


@pytest.fixture
def small_disk(tmp_path) -> Iterator[tuple[Services, Callable[[int], None]]]:
    """An SQLite service, and a function that sets how many pages its disk has left; below 0 the disk is large."""
    settings = Settings(home=tmp_path)
    upgrade_database(settings)
    services = build_services(settings)
    engine = services.transactions.engine
    left = -1

    @event.listens_for(engine, "begin")
    def limit(connection) -> None:
        n_pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        wanted = n_pages + left if left >= 0 else 1_000_000_000
        connection.exec_driver_sql(f"PRAGMA max_page_count={wanted}")

    def set_left(n_pages: int) -> None:
        nonlocal left
        left = n_pages

    yield services, set_left
    services.close()


def test_a_full_disk_loses_nothing_and_ends_when_there_is_room(small_disk, make_spec) -> None:
    from bo_service.bootstrap import ensure_default_project

    services, set_left = small_disk
    project = ensure_default_project(services.uow)
    study = new_study(services, project, make_spec)
    runner = Runner(services=services, desk=Desk(uow=services.uow))
    runner.run(all_jobs(services)[0])
    kept = {}

    def go_on_until_it_fails() -> None:
        for i in range(2000):
            for job_id in all_jobs(services):
                runner.run(job_id)
            for trial in claim(services, study, f"w{i}"):
                complete(services, trial, project, float(i))
                kept[trial.id] = float(i)

    set_left(0)
    with pytest.raises(Unavailable, match="disk is full"):
        go_on_until_it_fails()
    assert broken_invariants(services) == []
    set_left(-1)
    for job_id in all_jobs(services):
        runner.run(job_id)
    (trial,) = claim(services, study, "after")
    complete(services, trial, project, -1.0)
    with services.uow(read_only=True) as store:
        assert {i: store.trials.get(i).measurements["loss"].value for i in kept} == kept
    assert broken_invariants(services) == []


@pytest.mark.postgres
def test_an_exhausted_pool_is_said_and_passes(postgres_url: str, tmp_path, make_spec) -> None:
    from bo_service.bootstrap import ensure_default_project

    settings = Settings(
        home=tmp_path,
        database_url=_fresh_postgres(postgres_url),
        database_pool_size=1,
        database_statement_seconds=1.0,
    )
    upgrade_database(settings)
    services = build_services(settings)
    project = ensure_default_project(services.uow)
    let_go = threading.Event()

    def hold() -> None:
        with services.uow(read_only=True) as store:
            store.now()
            let_go.wait(30)

    holders = [threading.Thread(target=hold) for _ in range(2)]
    for holder in holders:
        holder.start()
    started = time.monotonic()
    with pytest.raises(Unavailable, match="every database connection is busy"):
        new_study(services, project, make_spec)
    assert time.monotonic() - started < 10
    let_go.set()
    for holder in holders:
        holder.join()
    new_study(services, project, make_spec)
    assert broken_invariants(services) == []
    services.close()
