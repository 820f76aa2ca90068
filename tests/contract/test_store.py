"""What every store keeps: on SQLite and on PostgreSQL, with real threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from bo_service.bootstrap import Services
from bo_service.domain.errors import Conflict, Invalid, NameTaken
from bo_service.domain.ids import LeaseToken, ProjectId
from bo_service.domain.job import JobKind, JobState
from bo_service.domain.proposal import Candidate, FitRecord, Measurement, Proposal, ProposalRequest, StudyView
from bo_service.domain.records import StoredReply
from bo_service.domain.spec import StudySpec
from bo_service.domain.study import Study
from bo_service.domain.trial import Trial, TrialState
from bo_service.orchestrator.advance_study import advance_study
from bo_service.orchestrator.attach_trials import GivenTrial, import_trials
from bo_service.orchestrator.claim_trials import ClaimRequest, claim_trials
from bo_service.orchestrator.create_study import create_study
from bo_service.orchestrator.reap import claim_job, crash_job, fail_job, requeue_orphans
from bo_service.orchestrator.record_observation import Outcome, record_observation
from bo_service.orchestrator.renew_lease import renew_lease
from bo_service.orchestrator.rescue_claims import rescue_claims
from bo_service.orchestrator.study_view import KnownTrials
from surrogates.sampling import space_filling


def draw(view: StudyView, request: ProposalRequest, warm_state: bytes | None) -> Proposal:
    """A generator without a model: the store does not care."""
    points = space_filling(view.spec.space, request.count, seed=view.seed, start=view.design_index)
    candidates = tuple(Candidate(parameters=p, generator="sobol") for p in points)
    return Proposal(candidates=candidates, fit=FitRecord(surrogate="sobol", state=None))


def run_jobs(services: Services) -> int:
    """Run queued jobs until none is left."""
    n = 0
    while (job := claim_job(LeaseToken(f"test:{n}"), lease_seconds=60, uow=services.uow)) is not None:
        advance_study(job, uow=services.uow, generate=draw, known=KnownTrials())
        n += 1
    return n


def new_study(services: Services, project: ProjectId, make_spec, **changes: Any) -> Study:
    return create_study(StudySpec.model_validate(make_spec(**changes)), project_id=project, uow=services.uow)


def claim(services: Services, study: Study, worker: str = "w", count: int = 1) -> tuple[Trial, ...]:
    request = ClaimRequest(worker=worker, count=count, fixed={}, reclaim=False)
    return claim_trials(study.id, request, project_id=study.project_id, uow=services.uow).trials


def complete(services: Services, trial: Trial, project: ProjectId, value: float) -> Trial:
    outcome = Outcome(measurements={"loss": Measurement(value=value)})
    assert trial.lease is not None
    return record_observation(trial.id, outcome, lease=trial.lease, project_id=project, uow=services.uow)


def fill(services: Services, study: Study, n: int) -> None:
    rows = [
        GivenTrial(parameters=p, outcome=Outcome(measurements={"loss": Measurement(value=float(i + 1))}))
        for i, p in enumerate(space_filling(study.spec.space, n, seed=5))
    ]
    import_trials(
        study.id, rows, dry_run=False, skip_bad_rows=False, project_id=study.project_id, uow=services.uow
    )


def test_a_name_is_unique_in_its_project_alone(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    with pytest.raises(NameTaken):
        new_study(services, project, make_spec, name=study.spec.name)
    with services.uow() as store:
        other = store.records.ensure_project("other", now=store.now())
        store.commit()
    assert new_study(services, other, make_spec, name=study.spec.name).id != study.id


def test_without_commit_nothing_lasts(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    with services.uow() as store:
        store.studies.save(replace(store.studies.get(study.id, lock=True), next_number=99))
    with services.uow(read_only=True) as store:
        assert store.studies.get(study.id).next_number == 1


def test_threads_never_share_a_trial_or_a_number(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    run_jobs(services)
    given: list[Trial] = []
    lock = threading.Lock()

    def work(name: str) -> None:
        for _ in range(4):
            for trial in claim(services, study, name):
                with lock:
                    given.append(trial)
                complete(services, trial, project, trial.number)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run_jobs(services)
    assert len(given) >= 10
    assert len({t.id for t in given}) == len(given)
    assert sorted(t.number for t in given) == list(range(1, len(given) + 1))
    with services.uow(read_only=True) as store:
        found = store.studies.get(study.id)
    assert found.n(TrialState.COMPLETED) == len(given)
    assert found.best_value == 1.0


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
    assert requeue_orphans("one", uow=services.uow) == 1
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


def test_three_crashes_open_the_breaker_and_the_study_goes_on_labelled(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec, surrogate={"name": "gp"}, initial={"size": 1})
    for i in range(3):
        job = claim_job(LeaseToken(f"t{i}"), lease_seconds=60, uow=services.uow)
        assert job is not None
        fail_job(job, "out of memory", uow=services.uow)
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


def test_a_dead_job_is_replaced_not_repeated(services, project, make_spec) -> None:
    new_study(services, project, make_spec)
    ids = set()
    for i in range(3):
        job = claim_job(LeaseToken(f"t{i}"), lease_seconds=60, uow=services.uow)
        assert job is not None
        ids.add(job.id)
        with services.uow() as store:
            crash_job(store.jobs.get(job.id), "died", store=store, now=store.now())
            store.commit()
    fresh = claim_job(LeaseToken("new"), lease_seconds=60, uow=services.uow)
    assert fresh is not None
    assert fresh.id not in ids


def test_observations_are_final(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    run_jobs(services)
    (trial,) = claim(services, study)
    with services.uow() as store:
        store.trials.observe(trial.id, 1, {"loss": Measurement(value=2.0)}, store.now())
        store.trials.observe(trial.id, 1, {"loss": Measurement(value=2.0)}, store.now())
        with pytest.raises(Conflict, match="already recorded as 2"):
            store.trials.observe(trial.id, 1, {"loss": Measurement(value=3.0)}, store.now())


def test_pages_are_complete_while_rows_are_added(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    fill(services, study, 25)
    numbers: list[int] = []
    cursor = None
    while True:
        with services.uow(read_only=True) as store:
            page = store.trials.page(study.id, cursor=cursor, limit=10)
        numbers += [trial.number for trial in page.items]
        cursor = page.next_cursor
        if len(numbers) == 10:
            fill(services, study, 3)
        if cursor is None:
            break
    assert numbers == list(range(1, 29))
    with services.uow(read_only=True) as store, pytest.raises(Invalid, match="cursor"):
        store.trials.page(study.id, cursor="nonsense")


def test_pages_by_change_are_complete(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    fill(services, study, 25)
    seen: list[int] = []
    cursor = None
    while True:
        with services.uow(read_only=True) as store:
            page = store.trials.page(study.id, updated_since=study.created_at, cursor=cursor, limit=7)
        seen += [trial.number for trial in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert sorted(seen) == list(range(1, 26))


def test_replies_are_kept_for_their_project(services, project) -> None:
    with services.uow() as store:
        reply = StoredReply(request_hash="h", status=201, body="{}")
        store.records.remember_reply(project, "key", reply, now=store.now())
        store.commit()
    with services.uow(read_only=True) as store:
        assert store.records.reply(project, "key") == reply
        assert store.records.reply(ProjectId("other"), "key") is None


@contextmanager
def counted(services: Services) -> Iterator[list[str]]:
    """The statements sent to the database."""
    sent: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(services.transactions.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(services.transactions.engine, "before_cursor_execute", note)


def statements(services: Services, study: Study, project: ProjectId) -> dict[str, int]:
    """How many statements each hot path takes now."""
    counts: dict[str, int] = {}
    claim(services, study)
    run_jobs(services)
    with counted(services) as sent:
        (trial,) = claim(services, study)
    counts["claim"] = len(sent)
    assert trial.lease is not None
    with counted(services) as sent:
        renew_lease(trial.id, trial.lease, project_id=project, uow=services.uow)
    counts["heartbeat"] = len(sent)
    with counted(services) as sent:
        complete(services, trial, project, 1e6)
    counts["complete"] = len(sent)
    with counted(services) as sent, services.uow(read_only=True) as store:
        found = store.studies.find(project, study.id)
        assert found.best_trial_id is not None
        store.trials.get(found.best_trial_id)
    counts["best"] = len(sent)
    with counted(services) as sent, services.uow(read_only=True) as store:
        store.trials.page(store.studies.find(project, study.id).id, limit=100)
    counts["page"] = len(sent)
    return counts


def test_the_hot_paths_take_a_fixed_number_of_statements(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    fill(services, study, 20)
    run_jobs(services)
    few = statements(services, study, project)
    fill(services, study, 400)
    run_jobs(services)
    many = statements(services, study, project)
    assert many == few
    allowance = 3 if services.transactions.is_sqlite else 4
    assert few["claim"] <= 12 + allowance
    assert few["heartbeat"] <= 5 + allowance
    assert few["complete"] <= 11 + allowance
    assert few["best"] <= 2 + allowance
    assert few["page"] <= 2 + allowance


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
