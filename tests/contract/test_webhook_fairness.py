"""Webhooks that never answer, or answer slowly, and what they leave to the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from bo_service.bootstrap import Services
from bo_service.domain.errors import Conflict
from bo_service.domain.ids import DeliveryId, ProjectId, new_id
from bo_service.domain.study import StudyState
from bo_service.domain.webhook import MAX_PENDING, Answer, DeliveryState, Webhook
from bo_service.orchestrator.change_state import change_state
from bo_service.orchestrator.manage_webhooks import ping_webhook, retry_delivery
from tests.steps import new_study
from tests.webhook_steps import MASTER, Post, deliver, found, hook, make_due
from workers.notifier import N_SENDERS, Notifier

BAD = Answer(error="no answer within 15 s")


def ping(services: Services, webhook: Webhook, *, ago: float = 0.0, count: int = 1) -> list[str]:
    """Queue pings that have been waiting for so many seconds."""
    queued = []
    for _ in range(count):
        delivery = ping_webhook(webhook.id, project_id=webhook.project_id, uow=services.uow)
        with services.uow() as store:
            store.webhooks.save_delivery(
                replace(delivery, ready_at=delivery.ready_at - timedelta(seconds=ago))
            )
            store.commit()
        queued.append(delivery.id)
    return queued


def failing_hook(services: Services, project: ProjectId) -> Webhook:
    """A webhook whose last try failed, with a backlog that has waited for minutes."""
    webhook = hook(services, project, url="https://dead.example/")
    ping(services, webhook)
    deliver(services, webhook, Post([BAD]))
    ping(services, webhook, ago=600, count=3)
    return webhook


@pytest.fixture
def other(services: Services) -> ProjectId:
    """A second project."""
    with services.uow() as store:
        project = store.records.ensure_project("other", now=store.now())
        store.commit()
    return project


class Net:
    """Dead receivers keep their sender until the end of the test; the others answer at once."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.has_answered = threading.Event()

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        del headers, body
        if "dead" in url:
            self.over.wait(30)
            return BAD
        self.has_answered.set()
        return Answer(status=204)


@pytest.fixture
def net() -> Iterator[Net]:
    made = Net()
    yield made
    made.over.set()


def test_dead_webhooks_leave_a_sender_to_those_that_are_well(services, project, net) -> None:
    for _ in range(N_SENDERS):
        failing_hook(services, project)
    notifier = Notifier(uow=services.uow, send=net, key=lambda: MASTER)
    senders = notifier.round()
    assert len(senders) == N_SENDERS - 1, "never all of them"
    ping(services, hook(services, project))
    senders += notifier.round()
    assert net.has_answered.wait(30)
    senders[-1].join(30)
    assert notifier.round() == [], "the dead ones do not get what became free"
    net.over.set()
    for sender in senders:
        sender.join(30)


def test_a_project_with_many_webhooks_does_not_hide_another_one(services, project, other, net) -> None:
    for _ in range(3 * N_SENDERS):
        ping(services, hook(services, project, url="https://dead.example/"), ago=600)
    ping(services, hook(services, other))
    senders = Notifier(uow=services.uow, send=net, key=lambda: MASTER).round()
    assert len(senders) == N_SENDERS
    assert net.has_answered.wait(30)
    net.over.set()
    for sender in senders:
        sender.join(30)


def test_a_failed_try_pauses_the_whole_webhook(services, project) -> None:
    webhook = hook(services, project)
    first, *_ = ping(services, webhook, count=3)
    post = Post([BAD, BAD])
    assert deliver(services, webhook, post)
    assert not deliver(services, webhook, post), "the others wait as long"
    tried, *others = found(services, webhook)
    assert {delivery.ready_at for delivery in others} == {tried.ready_at}
    make_due(services, tried)
    assert deliver(services, webhook, post)
    assert not deliver(services, webhook, post)
    assert post.ids == [first, first]


def test_a_good_answer_ends_the_pause_of_what_was_never_tried(services, project) -> None:
    webhook = hook(services, project)
    first, second, third = ping(services, webhook, count=3)
    post = Post([BAD])
    deliver(services, webhook, post)
    (new,) = ping(services, webhook)
    while deliver(services, webhook, post):
        pass
    assert post.ids == [first, new, second, third]
    assert found(services, webhook)[0].state is DeliveryState.PENDING, "it waits for its own next try"


def test_a_pause_leaves_alone_what_another_sender_has(services, project) -> None:
    webhook = hook(services, project)
    ping(services, webhook, count=2)
    outer = Post(during=lambda: deliver(services, webhook, Post([BAD])))
    assert deliver(services, webhook, outer)
    assert [d.state for d in found(services, webhook)] == [DeliveryState.DELIVERED, DeliveryState.PENDING]


def test_after_a_slow_try_a_webhook_goes_to_the_end_of_the_line(services, project, monkeypatch) -> None:
    monkeypatch.setattr("bo_service.orchestrator.deliver.SLOW", timedelta(0))
    slow, quick = hook(services, project), hook(services, project)
    ping(services, slow, ago=600, count=3)
    ping(services, quick, ago=300)
    assert deliver(services, slow, Post())
    with services.uow(read_only=True) as store:
        due = store.webhooks.due(now=store.now(), without=[], limit=9)
    assert [webhook.id for webhook in due] == [quick.id, slow.id]


def fill_up(services: Services, webhook: Webhook) -> None:
    """Let as many messages wait as may."""
    (first,) = ping(services, webhook)
    with services.uow() as store:
        given = store.webhooks.delivery(webhook.id, first)
        copies = [replace(given, id=DeliveryId(new_id())) for _ in range(MAX_PENDING - 1)]
        store.webhooks.add_deliveries(copies)
        store.commit()


def test_of_too_many_messages_the_newest_are_dropped_and_say_so(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    full, well = hook(services, project), hook(services, project)
    fill_up(services, full)
    change_state(study.id, StudyState.STOPPED, reason=None, project_id=project, uow=services.uow)
    assert found(services, well)[-1].state is DeliveryState.PENDING
    with services.uow(read_only=True) as store:
        (dropped,) = store.webhooks.deliveries(full.id, state=None, cursor=None, limit=1).items
        assert store.webhooks.n_pending(full.id) == MAX_PENDING
    assert (dropped.state, dropped.n_tries) == (DeliveryState.FAILED, 0)
    assert dropped.last_error == f"dropped: {MAX_PENDING} messages were waiting already"
    with pytest.raises(Conflict, match=str(MAX_PENDING)):
        ping(services, full)
    with pytest.raises(Conflict, match=str(MAX_PENDING)):
        retry_delivery(full.id, dropped.id, project_id=project, uow=services.uow)
    assert deliver(services, full, Post())
    retry_delivery(full.id, dropped.id, project_id=project, uow=services.uow)
