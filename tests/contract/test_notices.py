"""What webhooks are told: written in the transaction of what happened, on both databases."""

from __future__ import annotations

from bo_service.domain.ids import LeaseToken
from bo_service.domain.proposal import Measurement
from bo_service.domain.study import StudyState
from bo_service.domain.trial import AttemptExit
from bo_service.domain.webhook import (
    NoticeKind,
)
from bo_service.orchestrator.attach_trials import GivenTrial, attach_trial
from bo_service.orchestrator.bookkeeping import stopped_study
from bo_service.orchestrator.branch_study import branch_study
from bo_service.orchestrator.change_state import change_state
from bo_service.orchestrator.end_attempt import fail_trial
from bo_service.orchestrator.reap import claim_job, crash_job
from bo_service.orchestrator.record_observation import Outcome
from tests.steps import (
    claim,
    complete,
    counted,
    end_pause,
    fill,
    new_study,
    run_jobs,
)
from tests.webhook_steps import found, hook, kinds


def test_what_happens_is_written_for_who_listens(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec, stopping={"max_trials": 3})
    every = hook(services, project)
    ends = hook(services, project, kinds=(NoticeKind.STUDY_FINISHED,))
    mine = hook(services, project, study=study.spec.name)
    other = hook(services, project, study=new_study(services, project, make_spec).id)
    run_jobs(services)
    for value in (3.0, 4.0, 2.0):
        (trial,) = claim(services, study)
        complete(services, trial, project, value)
    assert kinds(services, every) == ["new_best", "new_best", "study_finished"]
    assert kinds(services, mine) == ["new_best", "new_best", "study_finished"]
    assert kinds(services, ends) == ["study_finished"]
    assert kinds(services, other) == []
    last = found(services, ends)[0].payload
    assert last["data"]["trial"]["metrics"]["loss"]["value"] == 2.0
    assert last["data"]["study"] == {"id": study.id, "name": study.spec.name, "state": "STOPPED"}
    assert "max_trials: 3 trials have closed" in last["text"]


def test_what_is_rolled_back_is_not_told(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    webhook = hook(services, project)
    with services.uow() as store:
        found_study = store.studies.get(study.id, lock=True)
        stopped_study(found_study, "target: reached", store=store, now=store.now())
        (written,) = store.webhooks.deliveries(webhook.id, state=None, cursor=None, limit=9).items
        assert written.kind is NoticeKind.STUDY_FINISHED
    assert found(services, webhook) == []


def test_a_study_stopped_by_hand_has_finished_and_says_so_once(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    webhook = hook(services, project)
    for state in (StudyState.STOPPED, StudyState.STOPPED, StudyState.ACTIVE, StudyState.PAUSED):
        change_state(study.id, state, reason="enough", project_id=project, uow=services.uow)
    (delivery,) = found(services, webhook)
    assert delivery.kind is NoticeKind.STUDY_FINISHED
    assert "has stopped (enough)" in delivery.payload["text"]


def test_a_study_that_fails_too_often_has_failed(services, project, make_spec) -> None:
    rules = {"max_failure_rate": 0.4, "min_failures": 2}
    study = new_study(services, project, make_spec, stopping=rules, retry={"max_attempts": 1})
    webhook = hook(services, project)
    ends = hook(services, project, kinds=(NoticeKind.STUDY_FINISHED,))
    run_jobs(services)
    for trial in claim(services, study, count=2):
        fail_trial(
            trial.id,
            "no",
            how=AttemptExit.ERROR,
            retry=False,
            lease=trial.lease,
            project_id=project,
            uow=services.uow,
        )
    assert kinds(services, webhook) == ["study_failed"]
    assert kinds(services, ends) == ["study_finished"], "who does not listen to failures hears of the end"
    assert "has failed (max_failure_rate: 2 of 2" in found(services, webhook)[0].payload["text"]


def test_an_opened_breaker_is_told_once(services, project, make_spec) -> None:
    new_study(services, project, make_spec, surrogate={"name": "gp"}, initial={"size": 1})
    webhook = hook(services, project)
    for i in range(5):
        job = claim_job(LeaseToken(f"t{i}"), lease_seconds=60, uow=services.uow)
        assert job is not None
        crash_job(job, "out of memory", uow=services.uow)
        end_pause(services, job.id)
    (delivery,) = found(services, webhook)
    assert delivery.kind is NoticeKind.STUDY_FAILED
    assert "goes on without its model" in delivery.payload["text"]


def test_an_import_is_told_once_and_a_branch_not_at_all(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    webhook = hook(services, project)
    fill(services, study, 50)
    (delivery,) = found(services, webhook)
    assert delivery.payload["data"]["trial"]["metrics"]["loss"]["value"] == 1.0
    fill(services, study, 50)
    assert len(found(services, webhook)) == 1, "nothing in it was better"
    branch_study(study.id, "branch", {}, project_id=project, uow=services.uow)
    assert len(found(services, webhook)) == 1


def test_every_trial_that_joins_a_front_is_told(services, project, make_spec) -> None:
    metrics = [{"name": "loss", "goal": "minimize"}, {"name": "seconds", "goal": "minimize"}]
    study = new_study(services, project, make_spec, metrics=metrics)
    webhook = hook(services, project)
    for x, loss, seconds in ((0.1, 1.0, 9.0), (0.2, 2.0, 5.0), (0.3, 3.0, 9.0)):
        measured = {"loss": Measurement(value=loss), "seconds": Measurement(value=seconds)}
        given = GivenTrial(parameters={"x": x, "k": 1}, outcome=Outcome(measurements=measured))
        attach_trial(study.id, given, project_id=project, uow=services.uow)
    assert [d.payload["text"].partition(": ")[2] for d in found(services, webhook)] == [
        "trial 1 joined the front, loss = 1, seconds = 9.",
        "trial 2 joined the front, loss = 2, seconds = 5.",
    ]


def test_a_tell_that_improves_nothing_asks_for_no_webhooks(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    run_jobs(services)
    first, second, third = claim(services, study, count=3)
    with counted(services) as sent:
        complete(services, first, project, 1.0)
    assert [s for s in sent if "webhook" in s] == [s for s in sent if "FROM webhooks" in s]
    assert len([s for s in sent if "webhook" in s]) == 1
    with counted(services) as sent:
        complete(services, second, project, 2.0)
    assert [s for s in sent if "webhook" in s] == []
    for _ in range(5):
        hook(services, project)
    with counted(services) as sent:
        complete(services, third, project, 0.5)
    assert len([s for s in sent if "webhook" in s]) == 2, "one to look, one for all deliveries"
