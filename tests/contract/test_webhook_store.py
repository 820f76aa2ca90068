"""Webhooks on SQLite and PostgreSQL: what is written when, who sends it, and what becomes of it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest

from bo_service.bootstrap import Services
from bo_service.domain.errors import Conflict, NotConfigured, NotFound
from bo_service.domain.ids import LeaseToken, ProjectId
from bo_service.domain.proposal import Measurement
from bo_service.domain.signing import MasterKey
from bo_service.domain.study import StudyState
from bo_service.domain.trial import AttemptExit
from bo_service.domain.webhook import (
    LISTENABLE,
    MAX_TRIES,
    MAX_WEBHOOKS,
    Answer,
    Delivery,
    DeliveryState,
    NoticeKind,
    Webhook,
)
from bo_service.orchestrator.attach_trials import GivenTrial, attach_trial
from bo_service.orchestrator.bookkeeping import stopped_study
from bo_service.orchestrator.branch_study import branch_study
from bo_service.orchestrator.change_state import change_state
from bo_service.orchestrator.deliver import OTHER_KEY, deliver_next, webhooks_due
from bo_service.orchestrator.end_attempt import fail_trial
from bo_service.orchestrator.manage_webhooks import (
    NewWebhook,
    create_webhook,
    enable_webhook,
    ping_webhook,
    remove_webhook,
    retry_delivery,
    rotate_secret,
)
from bo_service.orchestrator.reap import claim_job, crash_job, tidy
from bo_service.orchestrator.record_observation import Outcome
from bo_service.storage.webhooks import WEBHOOKS
from tests.contract.test_store import (
    claim,
    complete,
    counted,
    end_pause,
    fill,
    new_study,
    run_jobs,
)
from workers.notifier import N_SENDERS, Notifier

MASTER = MasterKey(b"k" * 32)


@dataclass
class Post:
    """Stands where the network would be: notes what is sent and answers in turn, then 204."""

    answers: list[Answer] = field(default_factory=list)
    sent: list[tuple[str, Mapping[str, str], bytes]] = field(default_factory=list)
    during: Callable[[], Any] = lambda: None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        self.during()
        with self._lock:
            self.sent.append((url, headers, body))
            return self.answers.pop(0) if self.answers else Answer(status=204)

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for _, headers, _ in self.sent]


def hook(services: Services, project: ProjectId, **wanted: Any) -> Webhook:
    given = {"url": "https://example.com/hook", "kinds": LISTENABLE} | wanted
    webhook, _ = create_webhook(NewWebhook(**given), key=lambda: MASTER, project_id=project, uow=services.uow)
    return webhook


def found(services: Services, webhook: Webhook) -> list[Delivery]:
    """Its deliveries, oldest first."""
    with services.uow(read_only=True) as store:
        page = store.webhooks.deliveries(webhook.id, state=None, cursor=None, limit=1000)
    return list(page.items)[::-1]


def kinds(services: Services, webhook: Webhook) -> list[str]:
    return [delivery.kind.value for delivery in found(services, webhook)]


def deliver(services: Services, webhook: Webhook, post: Post, *, master: MasterKey = MASTER) -> bool:
    return deliver_next(webhook.id, send=post, master=master, jitter=0.0, uow=services.uow)


def make_due(services: Services, delivery: Delivery) -> Delivery:
    """What waiting would do."""
    with services.uow() as store:
        due = replace(store.webhooks.delivery(delivery.webhook_id, delivery.id), ready_at=store.now())
        store.webhooks.save_delivery(due)
        store.commit()
    return due


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


def test_a_message_is_signed_sent_and_marked(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    wanted = NewWebhook(url="https://example.com/hook", kinds=LISTENABLE)
    webhook, secret = create_webhook(wanted, key=lambda: MASTER, project_id=project, uow=services.uow)
    change_state(study.id, StudyState.STOPPED, reason=None, project_id=project, uow=services.uow)
    post = Post()
    assert deliver(services, webhook, post)
    assert not deliver(services, webhook, post), "nothing is left"
    (delivery,) = found(services, webhook)
    assert (delivery.state, delivery.status, delivery.n_tries) == (DeliveryState.DELIVERED, 204, 1)
    ((url, headers, body),) = post.sent
    assert url == "https://example.com/hook"
    assert headers["webhook-id"] == delivery.id
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{delivery.id}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


def test_after_a_rotation_both_secrets_sign_for_a_day(services, project) -> None:
    webhook = hook(services, project)
    _, new = rotate_secret(webhook.id, key=lambda: MASTER, project_id=project, uow=services.uow)
    ping_webhook(webhook.id, project_id=project, uow=services.uow)
    post = Post()
    assert deliver(services, webhook, post)
    ((_, headers, _),) = post.sent
    assert len(headers["webhook-signature"].split(" ")) == 2
    assert new.startswith("whsec_")


def test_a_failed_try_is_repeated_under_the_same_id_and_given_up_in_the_end(services, project) -> None:
    webhook = hook(services, project)
    queued = ping_webhook(webhook.id, project_id=project, uow=services.uow)
    post = Post([Answer(status=500)] * (MAX_TRIES - 1) + [Answer(error="no answer within 15 s")])
    for _ in range(MAX_TRIES):
        make_due(services, queued)
        assert deliver(services, webhook, post)
        assert not deliver(services, webhook, post), "it waits for its next try"
    (delivery,) = found(services, webhook)
    assert set(post.ids) == {queued.id}
    assert len(post.ids) == MAX_TRIES
    assert (delivery.state, delivery.last_error) == (DeliveryState.FAILED, "no answer within 15 s")
    retry_delivery(webhook.id, delivery.id, project_id=project, uow=services.uow)
    assert deliver(services, webhook, post)
    assert found(services, webhook)[0].state is DeliveryState.DELIVERED


def test_410_disables_and_gives_up_what_waits_until_somebody_enables_it(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    webhook = hook(services, project)
    for _ in range(3):
        ping_webhook(webhook.id, project_id=project, uow=services.uow)
    assert deliver(services, webhook, Post([Answer(status=410)]))
    assert {d.state for d in found(services, webhook)} == {DeliveryState.FAILED}
    change_state(study.id, StudyState.STOPPED, reason=None, project_id=project, uow=services.uow)
    assert len(found(services, webhook)) == 3, "it hears no more"
    assert enable_webhook(webhook.id, project_id=project, uow=services.uow).disabled_at is None
    change_state(study.id, StudyState.ACTIVE, reason=None, project_id=project, uow=services.uow)
    change_state(study.id, StudyState.STOPPED, reason=None, project_id=project, uow=services.uow)
    assert len(found(services, webhook)) == 4


def test_days_of_failing_disable(services, project) -> None:
    webhook = hook(services, project)
    ping_webhook(webhook.id, project_id=project, uow=services.uow)
    deliver(services, webhook, Post([Answer(status=500)]))
    with services.uow() as store:
        kept = store.webhooks.get(webhook.id, lock=True)
        assert kept.failing_since is not None
        store.webhooks.save(replace(kept, failing_since=kept.failing_since - timedelta(days=3)))
        store.commit()
    make_due(services, found(services, webhook)[0])
    deliver(services, webhook, Post([Answer(error="ConnectError")]))
    with services.uow(read_only=True) as store:
        assert "3 days" in (store.webhooks.get(webhook.id).disabled_reason or "")
    assert found(services, webhook)[0].state is DeliveryState.FAILED


def test_a_sender_that_died_is_followed_by_another_with_the_same_id(services, project) -> None:
    webhook = hook(services, project)
    ping_webhook(webhook.id, project_id=project, uow=services.uow)

    def die() -> None:
        raise SystemExit

    dying, heir = Post(during=die), Post()
    with pytest.raises(SystemExit):
        deliver(services, webhook, dying)
    assert not deliver(services, webhook, heir), "the dead one still has it"
    (delivery,) = found(services, webhook)
    assert delivery.state is DeliveryState.PENDING
    make_due(services, delivery)
    assert deliver(services, webhook, heir)
    assert heir.ids == [delivery.id]


def test_a_message_whose_senders_keep_dying_is_given_up(services, project) -> None:
    webhook = hook(services, project)
    ping_webhook(webhook.id, project_id=project, uow=services.uow)
    with services.uow() as store:
        (delivery,) = store.webhooks.deliveries(webhook.id, state=None, cursor=None, limit=9).items
        store.webhooks.save_delivery(replace(delivery, n_tries=MAX_TRIES))
        store.commit()
    post = Post()
    assert deliver(services, webhook, post)
    assert post.sent == []
    assert found(services, webhook)[0].state is DeliveryState.FAILED


def test_the_answer_of_a_sender_that_slept_too_long_does_not_count(services, project) -> None:
    webhook = hook(services, project)
    queued = ping_webhook(webhook.id, project_id=project, uow=services.uow)
    inner = Post()

    def be_overtaken() -> None:
        make_due(services, queued)
        assert deliver(services, webhook, inner)

    assert deliver(services, webhook, Post([Answer(status=500)], during=be_overtaken))
    (delivery,) = found(services, webhook)
    assert (delivery.state, delivery.last_error) == (DeliveryState.DELIVERED, None)
    with services.uow(read_only=True) as store:
        assert store.webhooks.get(webhook.id).failing_since is None


def test_a_webhook_removed_while_a_message_is_on_its_way_is_gone(services, project) -> None:
    webhook = hook(services, project)
    ping_webhook(webhook.id, project_id=project, uow=services.uow)

    def remove() -> None:
        remove_webhook(webhook.id, project_id=project, uow=services.uow)

    assert deliver(services, webhook, Post(during=remove))
    with services.uow(read_only=True) as store, pytest.raises(NotFound):
        store.webhooks.get(webhook.id)


def test_a_service_with_another_key_does_not_sign(services, project) -> None:
    webhook = hook(services, project)
    ping_webhook(webhook.id, project_id=project, uow=services.uow)
    post = Post()
    assert deliver(services, webhook, post, master=MasterKey(b"o" * 32))
    assert post.sent == []
    (delivery,) = found(services, webhook)
    assert (delivery.state, delivery.last_error) == (DeliveryState.PENDING, OTHER_KEY)


def test_several_senders_share_the_work_and_none_sends_what_another_has(services, project) -> None:
    webhooks = [hook(services, project) for _ in range(3)]
    for webhook in webhooks:
        for _ in range(8):
            ping_webhook(webhook.id, project_id=project, uow=services.uow)
    post = Post()
    start = threading.Barrier(6)

    def relay() -> None:
        start.wait()
        while due := webhooks_due(without=set(), limit=4, uow=services.uow):
            for webhook_id in due:
                deliver_next(webhook_id, send=post, master=MASTER, jitter=0.0, uow=services.uow)

    threads = [threading.Thread(target=relay) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(post.ids) == 24
    assert len(set(post.ids)) == 24


def test_a_slow_receiver_takes_one_sender_and_leaves_the_others(services, project) -> None:
    slow, quick = hook(services, project, url="https://slow.example/"), hook(services, project)
    for _ in range(N_SENDERS + 2):
        ping_webhook(slow.id, project_id=project, uow=services.uow)
    ping_webhook(quick.id, project_id=project, uow=services.uow)
    release, has_quick = threading.Event(), threading.Event()

    def send(url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if "slow" in url:
            release.wait(30)
        else:
            has_quick.set()
        return Answer(status=204)

    notifier = Notifier(uow=services.uow, send=send, key=lambda: MASTER)
    senders = notifier.round()
    assert len(senders) == 2
    assert has_quick.wait(30)
    senders[1].join(30)
    assert notifier.round() == [], "of one webhook one message at a time"
    release.set()
    senders[0].join(30)
    assert [d.state for d in found(services, slow)].count(DeliveryState.DELIVERED) == 1


def test_a_process_without_the_key_leaves_messages_to_those_that_have_it(services, project) -> None:
    webhook = hook(services, project)
    ping_webhook(webhook.id, project_id=project, uow=services.uow)
    assert Notifier(uow=services.uow, send=Post(), key=lambda: None).round() == []
    assert found(services, webhook)[0].n_tries == 0


def test_without_a_key_that_all_machines_share_no_webhook_is_made(services, project) -> None:
    wanted = NewWebhook(url="https://example.com/", kinds=LISTENABLE)
    with pytest.raises(NotConfigured, match="BO_SECRET_KEY"):
        create_webhook(wanted, key=lambda: None, project_id=project, uow=services.uow)
    with services.uow(read_only=True) as store:
        assert store.webhooks.of_project(project) == []


def test_a_project_has_a_bounded_number_of_webhooks(services, project) -> None:
    for _ in range(MAX_WEBHOOKS):
        hook(services, project)
    with pytest.raises(Conflict, match=str(MAX_WEBHOOKS)):
        hook(services, project)


def test_another_project_neither_hears_nor_touches(services, project, make_spec) -> None:
    with services.uow() as store:
        other = store.records.ensure_project("other", now=store.now())
        store.commit()
    theirs = hook(services, other)
    mine = hook(services, project)
    ping = ping_webhook(mine.id, project_id=project, uow=services.uow)
    study = new_study(services, project, make_spec)
    change_state(study.id, StudyState.STOPPED, reason=None, project_id=project, uow=services.uow)
    assert found(services, theirs) == []
    acts: list[Callable[[], Any]] = [
        lambda: hook(services, other, study=study.id),
        lambda: remove_webhook(mine.id, project_id=other, uow=services.uow),
        lambda: enable_webhook(mine.id, project_id=other, uow=services.uow),
        lambda: ping_webhook(mine.id, project_id=other, uow=services.uow),
        lambda: retry_delivery(mine.id, ping.id, project_id=other, uow=services.uow),
        lambda: retry_delivery(theirs.id, ping.id, project_id=other, uow=services.uow),
        lambda: rotate_secret(mine.id, key=lambda: MASTER, project_id=other, uow=services.uow),
    ]
    for act in acts:
        with pytest.raises(NotFound):
            act()
    assert len(found(services, mine)) == 2


def test_no_secret_is_in_the_database(services, project) -> None:
    wanted = NewWebhook(url="https://example.com/", kinds=LISTENABLE)
    webhook, first = create_webhook(wanted, key=lambda: MASTER, project_id=project, uow=services.uow)
    _, second = rotate_secret(webhook.id, key=lambda: MASTER, project_id=project, uow=services.uow)
    with services.transactions(read_only=True) as (connection, _):
        stored = str(connection.execute(WEBHOOKS.select()).all())
    for secret in (first, second):
        encoded = secret.removeprefix("whsec_")
        assert encoded not in stored
        assert base64.b64decode(encoded).hex()[:16] not in stored
    assert first != second


def test_deliveries_are_paged_newest_first_and_forgotten_after_a_week(services, project) -> None:
    webhook = hook(services, project)
    queued = [ping_webhook(webhook.id, project_id=project, uow=services.uow) for _ in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        with services.uow(read_only=True) as store:
            page = store.webhooks.deliveries(webhook.id, state=None, cursor=cursor, limit=3)
        seen += [delivery.id for delivery in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [delivery.id for delivery in queued][::-1]
    with services.uow() as store:
        long_ago = store.now() - timedelta(days=8)
        for delivery, state in zip(queued, ("DELIVERED", "FAILED", "PENDING"), strict=False):
            store.webhooks.save_delivery(replace(delivery, state=DeliveryState(state), updated_at=long_ago))
        store.commit()
    tidy(uow=services.uow)
    assert [d.id for d in found(services, webhook)] == [d.id for d in queued[2:]]


def test_results_are_taken_while_webhooks_come_and_go(services, project, make_spec) -> None:
    """Improvements, removals, and answers that disable, all at once: nobody waits for ever and nothing fails."""
    study = new_study(services, project, make_spec)
    stays = hook(services, project)
    over = threading.Event()
    errors: list[BaseException] = []

    def until_over(act: Callable[[], Any]) -> None:
        try:
            while not over.is_set():
                act()
        except BaseException as error:
            errors.append(error)
            raise

    def come_and_go() -> None:
        webhook = hook(services, project)
        ping_webhook(webhook.id, project_id=project, uow=services.uow)
        remove_webhook(webhook.id, project_id=project, uow=services.uow)

    def send_and_disable() -> None:
        for webhook_id in webhooks_due(without=set(), limit=4, uow=services.uow):
            send = Post([Answer(status=410)])
            deliver_next(webhook_id, send=send, master=MASTER, jitter=0.0, uow=services.uow)
        enable_webhook(stays.id, project_id=project, uow=services.uow)

    acts = (come_and_go, come_and_go, send_and_disable, send_and_disable)
    threads = [threading.Thread(target=until_over, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for i in range(15):
        measured = {"loss": Measurement(value=-float(i))}
        given = GivenTrial(parameters={"x": i / 100, "k": 1}, outcome=Outcome(measurements=measured))
        assert attach_trial(study.id, given, project_id=project, uow=services.uow).on_front
    over.set()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []
