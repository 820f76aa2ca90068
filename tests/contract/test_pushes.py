"""Pushing trials to a fleet: what is announced, what a claim under a push gets, and what is announced again."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest

from bo_service.bootstrap import Services, broken_invariants
from bo_service.domain.errors import Invalid
from bo_service.domain.ids import ProjectId, PushId
from bo_service.domain.push import Push
from bo_service.domain.spec import PushPolicy
from bo_service.domain.study import Study, StudyState
from bo_service.domain.trial import TrialState
from bo_service.orchestrator import claim_trials as claiming
from bo_service.orchestrator.branch_study import branch_study
from bo_service.orchestrator.change_state import change_state
from bo_service.orchestrator.claim_trials import ClaimReply, ClaimRequest, claim_trials
from bo_service.orchestrator.edit_study import edit_study
from bo_service.orchestrator.end_attempt import release_trial
from bo_service.orchestrator.enqueue_configuration import enqueue_configuration
from bo_service.orchestrator.push_trials import push_trials
from tests.steps import advance_all, claim, complete, counted, fill, new_study, run_jobs
from workers.house import Housekeeper
from workers.pusher import Pusher

RESEND = timedelta(seconds=15)
PUSH = {"objective": "project.train:train", "slots": 3}


@dataclass
class Broker:
    """Takes messages, or refuses all after some."""

    messages: list[tuple[Push, PushPolicy]] = field(default_factory=list)
    accepts: int = 10**9

    def send(self, push: Push, policy: PushPolicy) -> None:
        if len(self.messages) >= self.accepts:
            raise ConnectionError("the broker is away")
        self.messages.append((push, policy))

    @property
    def ids(self) -> list[PushId]:
        return [push.id for push, _ in self.messages]


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def study(services: Services, project: ProjectId, make_spec) -> Study:
    made = new_study(services, project, make_spec, push=PUSH)
    run_jobs(services)
    return made


def push(services: Services, study: Study, broker: Broker, **options: Any) -> int:
    options = {"resend_after": RESEND} | options
    return push_trials(study.id, send=broker.send, uow=services.uow, **options)


def answer(services: Services, study: Study, push_id: PushId, worker: str = "w") -> ClaimReply:
    """What a worker of the fleet gets for a message."""
    request = ClaimRequest(worker=worker, fixed={}, reclaim=False, push=push_id)
    return claim_trials(study.id, request, project_id=study.project_id, uow=services.uow)


def make_older(services: Services, study: Study, age: timedelta) -> None:
    """As if every message had been sent so long ago."""
    with services.uow() as store:
        pushes = store.pushes.of_study(study.id)
        store.pushes.spend(study.id, [p.id for p in pushes])
        store.pushes.add([replace(p, created_at=p.created_at - age, sent_at=p.sent_at - age) for p in pushes])
        store.commit()


def test_as_many_trials_are_announced_as_there_are_slots(services, study, broker) -> None:
    assert push(services, study, broker) == 3
    assert push(services, study, broker) == 0
    assert {(p.study_id, policy.objective) for p, policy in broker.messages} == {
        (study.id, "project.train:train")
    }


def test_a_message_brings_one_trial_once(services, project, study, broker) -> None:
    push(services, study, broker)
    first = answer(services, study, broker.ids[0])
    assert [t.state for t in first.trials] == [TrialState.RUNNING]
    again = answer(services, study, broker.ids[0], worker="another")
    assert (again.trials, again.reason, again.may_wait) == ((), "push_spent", False)
    assert answer(services, study, PushId("made up")).reason == "push_spent"
    # the slot is busy until the trial closes
    assert push(services, study, broker) == 0
    complete(services, first.trials[0], project, 0.5)
    assert push(services, study, broker) == 1


def test_a_released_and_a_lost_trial_are_announced_again(
    services, project, study, broker, monkeypatch
) -> None:
    push(services, study, broker)
    released, lost = (answer(services, study, push_id).trials[0] for push_id in broker.ids[:2])
    release_trial(released.id, lease=released.lease, project_id=project, uow=services.uow)
    assert push(services, study, broker) == 1
    with services.uow() as store:
        gone = store.now() - timedelta(minutes=1)
        store.trials.save(replace(store.trials.get(lost.id), lease_expires_at=gone))
        store.commit()
    assert Housekeeper(services.uow).round() == 1
    assert push(services, study, broker) == 1
    given = [answer(services, study, push_id).trials[0].id for push_id in broker.ids[2:]]
    assert set(given[:2]) | set(given[2:]) >= {released.id, lost.id}
    assert broken_invariants(services) == []


def test_no_more_is_announced_than_the_study_could_give(services, project, make_spec, broker) -> None:
    study = new_study(
        services, project, make_spec, push={**PUSH, "slots": 50}, stopping={"max_trials": 4}, parallelism=2
    )
    assert push(services, study, broker) == 0
    run_jobs(services)
    assert push(services, study, broker) == 2
    trials = [answer(services, study, push_id).trials[0] for push_id in broker.ids]
    assert push(services, study, broker) == 0
    for trial in trials:
        complete(services, trial, project, 1.0)
    assert push(services, study, broker, asks=True) == 0
    run_jobs(services)
    assert push(services, study, broker) == 2
    for push_id in broker.ids[2:]:
        complete(services, answer(services, study, push_id).trials[0], project, 1.0)
    assert push(services, study, broker) == 0
    with services.uow(read_only=True) as store:
        assert store.studies.get(study.id).state is StudyState.STOPPED
        assert store.pushes.of_study(study.id) == []
        assert store.pushes.studies() == []


def test_two_relays_at_once_never_exceed_the_slots(services, study, broker) -> None:
    threads = [threading.Thread(target=push, args=(services, study, broker)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(broker.messages) == 3


def test_a_lost_message_is_sent_again_and_ever_more_rarely(services, study, broker) -> None:
    push(services, study, broker)
    make_older(services, study, timedelta(seconds=16))
    assert push(services, study, broker) == 3
    assert broker.ids[3:] == broker.ids[:3]
    # sent again after 16 s, it waits as long once more
    make_older(services, study, timedelta(seconds=15.5))
    assert push(services, study, broker) == 0
    make_older(services, study, timedelta(seconds=1))
    assert push(services, study, broker) == 3
    assert len({answer(services, study, i).trials[0].id for i in broker.ids[:3]}) == 3
    make_older(services, study, timedelta(hours=1))
    assert push(services, study, broker) == 0


def test_a_message_that_cannot_be_sent_is_taken_back(services, study, broker) -> None:
    broker.accepts = 1
    with pytest.raises(ConnectionError):
        push(services, study, broker)
    broker.accepts = 10
    assert push(services, study, broker) == 2
    assert len(set(broker.ids)) == 3


def test_a_study_that_rests_announces_nothing_and_its_messages_find_nothing(
    services, project, study, broker
) -> None:
    push(services, study, broker)
    change_state(study.id, StudyState.PAUSED, reason=None, project_id=project, uow=services.uow)
    assert push(services, study, broker) == 0
    assert answer(services, study, broker.ids[0]).reason == "paused"
    change_state(study.id, StudyState.ACTIVE, reason=None, project_id=project, uow=services.uow)
    # what was asked in vain is announced anew, the others are still on their way
    assert answer(services, study, broker.ids[0]).reason == "push_spent"
    assert push(services, study, broker) == 1


def test_an_edit_of_the_policy_withdraws_what_was_announced(services, project, study, broker) -> None:
    push(services, study, broker)
    held = answer(services, study, broker.ids[0]).trials[0]
    changes = {"push": {"objective": "project.train:better", "slots": 2, "queue": "objectives.gpu"}}
    edit_study(study.id, changes, project_id=project, uow=services.uow)
    assert answer(services, study, broker.ids[1]).reason == "push_spent"
    assert push(services, study, broker) == 1
    assert broker.messages[-1][1] == PushPolicy.model_validate(changes["push"])
    edit_study(study.id, {"push": None}, project_id=project, uow=services.uow)
    assert push(services, study, broker) == 0
    complete(services, held, project, 0.1)
    assert broken_invariants(services) == []


def test_a_branch_keeps_the_policy_and_prepares_for_its_slots(
    services, project, make_spec, study, broker
) -> None:
    fill(services, study, 8)
    branch = branch_study(
        study.id, "branch", {"surrogate": {"name": "gp"}}, project_id=project, uow=services.uow
    ).study
    assert branch.spec.push == study.spec.push
    advance_all(services)
    # no worker ever asked this study, and its initial design is done
    assert push(services, branch, broker) == 0
    assert push(services, branch, broker, asks=True) == 0
    advance_all(services)
    assert push(services, branch, broker, asks=True) == 3


def test_the_users_configurations_are_announced_too(services, project, make_spec, broker) -> None:
    study = new_study(services, project, make_spec, push=PUSH)
    enqueue_configuration(study.id, {"x": 0.25, "k": 3}, project_id=project, uow=services.uow)
    assert push(services, study, broker) == 1
    assert answer(services, study, broker.ids[0]).trials[0].parameters == {"x": 0.25, "k": 3}


def test_the_relay_hears_of_a_free_slot_and_looks_at_pushed_studies_alone(
    services, project, make_spec, study, broker
) -> None:
    quiet = new_study(services, project, make_spec)
    pusher = Pusher(send=broker.send, awake=threading.Event())
    assert pusher.round(services) == 3
    pusher.heard(quiet.id)
    assert not pusher.awake.is_set()
    trial = answer(services, study, broker.ids[0]).trials[0]
    with services.uow() as store:
        store.pushes.free(study.id, trial.id)
        assert store.pushes.changed == {study.id}
    complete(services, trial, project, 0.5)
    pusher.heard(study.id)
    assert pusher.awake.is_set()
    assert pusher.round(services) == 1


def test_nothing_is_asked_of_the_database_about_pushes_where_a_study_does_not_push(
    services, project, make_spec, broker
) -> None:
    study = new_study(services, project, make_spec)
    run_jobs(services)
    with counted(services) as said:
        (trial,) = claim(services, study)
        complete(services, trial, project, 0.5)
    assert not any("pushes" in statement for statement in said)
    with counted(services) as said:
        Pusher(send=broker.send, awake=threading.Event()).round(services)
    assert sum("FROM" in statement for statement in said) == 1


def test_a_pushed_study_counts_its_slots_and_not_its_workers(
    services, project, make_spec, study, broker, monkeypatch
) -> None:
    monkeypatch.setattr(claiming, "SIGHTINGS", claiming.Sightings(0.0))
    push(services, study, broker, asks=True)
    for position, push_id in enumerate(broker.ids):
        answer(services, study, push_id, worker=f"process {position}")
    with services.uow(read_only=True) as store:
        assert store.records.n_workers(study.id, since=store.now() - timedelta(minutes=1)) == 3


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"objective": "os.system"}, "push.objective"),
        ({"objective": "a b:c"}, "push.objective"),
        ({"slots": 0}, "push.slots"),
        ({"queue": "cpu"}, "push.queue"),
        ({"queue": "objectives.a b"}, "push.queue"),
    ],
)
def test_a_wrong_policy_names_its_field(
    services: Services, project: ProjectId, study: Study, change: dict[str, Any], path: str
) -> None:
    with pytest.raises(Invalid) as caught:
        edit_study(study.id, {"push": PUSH | change}, project_id=project, uow=services.uow)
    assert [problem.path for problem in caught.value.problems] == [path]
