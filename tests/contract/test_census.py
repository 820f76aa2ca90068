"""The service counted in SQL is what a walk through it finds, on both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from bo_service.bootstrap import Services, survey_of
from bo_service.domain.ids import LeaseToken, ProjectId, SuggestionId, new_id
from bo_service.domain.job import Queue, Role, ServiceProcess
from bo_service.domain.push import Push
from bo_service.domain.records import Event, EventKind
from bo_service.domain.suggestion import SuggestionState
from bo_service.domain.webhook import Answer
from bo_service.orchestrator.claim_trials import ClaimRequest, claim_trials
from bo_service.orchestrator.edit_study import edit_study
from bo_service.orchestrator.manage_webhooks import ping_webhook
from bo_service.orchestrator.push_trials import push_trials
from bo_service.orchestrator.reap import claim_job, crash_job
from bo_service.storage import census as module
from tests.faults.test_in_process import let_the_lease_end
from tests.steps import advance_all, claim, complete, new_study, run_jobs
from tests.webhook_steps import Post, deliver, hook
from workers.house import Housekeeper


@pytest.fixture(autouse=True)
def settled_at_once(monkeypatch) -> None:
    monkeypatch.setattr(module, "SETTLED_AFTER", timedelta(0))


def test_studies_trials_and_suggestions_are_counted(
    services: Services, project: ProjectId, make_spec
) -> None:
    survey = survey_of(services)
    study = new_study(services, project, make_spec)
    assert survey.census().queues[Queue.CPU].n_due == 1
    run_jobs(services)
    one, two = claim(services, study, count=2)
    complete(services, one, project, 1.0)
    census = survey.census()
    assert census.studies == {"ACTIVE": 1}
    assert {s: n for s, n in census.trials.items() if n} == {"RUNNING": 1, "COMPLETED": 1}
    with services.uow(read_only=True) as store:
        assert census.n_fresh + census.n_stale == len(store.suggestions.prepared(study.id))
    assert two.number == 2


@pytest.mark.parametrize(("staleness", "n_fresh"), [(None, 2), (0, 0), (1, 0), (2, 2)])
def test_suggestions_are_stale_by_the_studys_own_rule(
    services: Services, project: ProjectId, make_spec, staleness: int | None, n_fresh: int
) -> None:
    """Two results later, with two trials running: fresh by default, stale where the study bears fewer."""
    study = new_study(services, project, make_spec, staleness=staleness)
    run_jobs(services)
    trials = claim(services, study, count=4)
    with services.uow() as store:
        now = store.studies.get(study.id)
        drawn = store.suggestions.prepared(study.id)
        for suggestion in drawn:
            store.suggestions.save([suggestion.moved_to(SuggestionState.SUPERSEDED)])
        made = [
            replace(drawn[0], id=SuggestionId(new_id()), is_timeless=False, data_version=now.data_version)
            for _ in range(2)
        ]
        store.suggestions.add(made)
        store.commit()
    for trial in trials[:2]:
        complete(services, trial, project, 1.0)
    census = survey_of(services).census()
    assert (census.n_fresh, census.n_stale) == (n_fresh, 2 - n_fresh)
    with services.uow(read_only=True) as store:
        now = store.studies.get(study.id)
        assert n_fresh == store.suggestions.n_fresh(now)
        assert n_fresh == sum(
            s.is_fresh(data_version=now.data_version, staleness=now.staleness)
            for s in store.suggestions.prepared(study.id)
        )


def test_a_queue_tells_what_is_due_rests_and_runs(services: Services, project, make_spec) -> None:
    for name in "abc":
        new_study(services, project, make_spec, name=name)
    running = claim_job(LeaseToken("one"), lease_seconds=60, uow=services.uow)
    crashed = claim_job(LeaseToken("two"), lease_seconds=60, uow=services.uow)
    assert running is not None
    assert crashed is not None
    crash_job(crashed, "boom", uow=services.uow)
    queue = survey_of(services).census().queues[Queue.CPU]
    assert (queue.n_due, queue.n_resting, queue.n_running) == (1, 1, 1)
    with services.uow() as store:
        job = store.jobs.get(running.id).requeued(now=store.now())
        store.jobs.save(replace(job, ready_at=store.now() - timedelta(seconds=90)))
        store.commit()
    assert survey_of(services).census().queues[Queue.CPU].oldest_seconds == pytest.approx(90, abs=10)


def test_what_grows_is_counted_once_and_goes_on(services: Services, project, make_spec) -> None:
    survey = survey_of(services)
    study = new_study(services, project, make_spec, surrogate={"name": "gp"}, initial={"size": 2})
    advance_all(services)
    for value in (1.0, 2.0, 0.5):
        (trial,) = claim(services, study)
        complete(services, trial, project, value)
        advance_all(services)
    first = survey.totals()
    fits = first.fits["gp", "cpu"]
    assert fits.n == first.events["fit_finished"] > 0
    assert fits.seconds > 0
    assert first.events["trial_closed"] == 3
    (trial,) = claim(services, study)
    let_the_lease_end(services, study.id)
    Housekeeper(services.uow).round()
    then = survey.totals()
    assert then.n_leases_expired == 1
    assert then.events["trial_closed"] == 3
    assert then == survey.totals() == survey_of(services).totals()


def test_crashes_are_counted_by_the_surrogate_the_study_had(services: Services, project, make_spec) -> None:
    survey = survey_of(services)
    for name, surrogate in (("a", "sobol"), ("b", "gp")):
        new_study(services, project, make_spec, name=name, surrogate={"name": surrogate})
        job = claim_job(LeaseToken(name), lease_seconds=60, uow=services.uow)
        assert job is not None
        crash_job(job, "boom", uow=services.uow)
    edit_study("b", {"surrogate": {"name": "sobol"}}, project_id=project, uow=services.uow)
    assert survey.totals().crashes == {"sobol": 1, "gp": 1}
    assert survey.totals().events["job_crashed"] == 2


def test_an_event_that_commits_late_is_neither_skipped_nor_waited_for(
    services: Services, project, make_spec, monkeypatch
) -> None:
    """On PostgreSQL numbers are given before commits: the last seconds are counted anew at every look."""
    monkeypatch.setattr(module, "SETTLED_AFTER", timedelta(seconds=35))
    study = new_study(services, project, make_spec)
    survey = survey_of(services)
    assert survey.totals().events == {"study_created": 1}
    if services.transactions.is_sqlite:
        return
    with services.uow() as slow:
        slow.records.add_event(Event(study_id=study.id, kind=EventKind.BREAKER, at=slow.now()))
        with services.uow() as store:
            store.records.add_event(Event(study_id=study.id, kind=EventKind.STUDY_CHANGED, at=store.now()))
            store.commit()
        for _ in range(2):
            assert survey.totals().events == {"study_created": 1, "study_changed": 1}
        slow.commit()
    monkeypatch.setattr(module, "SETTLED_AFTER", timedelta(0))
    for _ in range(2):
        assert survey.totals().events == {"study_created": 1, "study_changed": 1, "breaker": 1}


def test_messages_out_are_counted_until_somebody_took_them(
    services: Services, project: ProjectId, make_spec
) -> None:
    survey = survey_of(services)
    webhook = hook(services, project)
    for _ in range(3):
        ping_webhook(webhook.id, project_id=project, uow=services.uow)
    study = new_study(services, project, make_spec, push={"objective": "m.f:g", "slots": 2})
    run_jobs(services)
    pushed: list[Push] = []
    push_trials(
        study.id,
        send=lambda push, _: pushed.append(push),
        resend_after=timedelta(seconds=15),
        uow=services.uow,
    )
    census = survey.census()
    assert (census.n_deliveries_waiting, census.n_deliveries_given_up) == (3, 0)
    assert census.n_pushes_waiting == 2
    assert deliver(services, webhook, Post())
    assert survey.census().n_deliveries_waiting == 2
    assert deliver(services, webhook, Post([Answer(status=410)]))
    request = ClaimRequest(worker="w", fixed={}, reclaim=False, push=pushed[0].id)
    assert claim_trials(study.id, request, project_id=project, uow=services.uow).trials
    census = survey.census()
    assert (census.n_deliveries_waiting, census.n_deliveries_given_up) == (0, 2)
    assert census.n_pushes_waiting == 1


def test_processes_are_those_heard_of_lately(services: Services) -> None:
    with services.uow() as store:
        now = store.now()
        for name, ago in (("new", 1), ("old", 3600)):
            store.jobs.saw_process(
                ServiceProcess(
                    name=name,
                    role=Role.RELAY,
                    queues=(),
                    device="",
                    trouble="broker: gone",
                    version="1",
                    started_at=now,
                    seen_at=now - timedelta(seconds=ago),
                )
            )
        store.commit()
    (found,) = survey_of(services).processes()
    assert (found.name, found.trouble, found.is_embedded) == ("new", "broker: gone", False)


def test_the_survey_knows_the_revision(services: Services) -> None:
    survey = survey_of(services)
    assert survey.revision() == survey.revisions[0]
    assert survey.revisions[-1] == "0001"
