"""Webhooks on SQLite and PostgreSQL: what is written when, who sends it, and what becomes of it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from bo_service.domain.errors import Conflict, NotConfigured, NotFound
from bo_service.domain.ids import ProjectId
from bo_service.domain.proposal import Measurement
from bo_service.domain.signing import MasterKey
from bo_service.domain.study import StudyState
from bo_service.domain.webhook import (
    LISTENABLE,
    MAX_TRIES,
    MAX_WEBHOOKS,
    Answer,
    DeliveryState,
)
from bo_service.orchestrator.attach_trials import GivenTrial, attach_trial
from bo_service.orchestrator.change_state import change_state
from bo_service.orchestrator.deliver import OTHER_KEY, deliver_next, webhooks_due
from bo_service.orchestrator.manage_webhooks import (
    NewWebhook,
    create_webhook,
    enable_webhook,
    ping_webhook,
    remove_webhook,
    retry_delivery,
    rotate_secret,
)
from bo_service.orchestrator.reap import tidy
from bo_service.orchestrator.record_observation import Outcome
from bo_service.storage.webhooks import WEBHOOKS, SqlWebhooks
from tests.steps import (
    new_study,
)
from tests.webhook_steps import MASTER, Post, deliver, found, hook, make_due
from workers.notifier import N_SENDERS, Notifier


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


def test_an_outage_that_ended_unnoticed_does_not_count_days_later(services, project) -> None:
    """The last message of an outage is given up; nobody knows how the receiver was until the next one."""
    webhook = hook(services, project)
    queued = ping_webhook(webhook.id, project_id=project, uow=services.uow)
    with services.uow() as store:
        store.webhooks.save_delivery(replace(queued, n_tries=MAX_TRIES - 1))
        kept = store.webhooks.get(webhook.id, lock=True)
        store.webhooks.save(replace(kept, failing_since=store.now() - timedelta(days=2)))
        store.commit()
    assert deliver(services, webhook, Post([Answer(status=500)]))
    (given_up,) = found(services, webhook)
    assert given_up.state is DeliveryState.FAILED
    with services.uow(read_only=True) as store:
        assert store.webhooks.get(webhook.id).failing_since is None


def test_an_outage_goes_on_while_something_waits(services, project) -> None:
    webhook = hook(services, project)
    given_up, _ = (ping_webhook(webhook.id, project_id=project, uow=services.uow) for _ in range(2))
    with services.uow() as store:
        store.webhooks.save_delivery(replace(given_up, n_tries=MAX_TRIES - 1))
        store.commit()
    assert deliver(services, webhook, Post([Answer(status=500)]))
    with services.uow(read_only=True) as store:
        assert store.webhooks.get(webhook.id).failing_since is not None


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
        while due := webhooks_due(serving=[], n_senders=4, uow=services.uow):
            for webhook in due:
                deliver_next(webhook.id, send=post, master=MASTER, jitter=0.0, uow=services.uow)

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


def test_a_webhook_whose_sender_could_not_start_is_served_later(services, project, monkeypatch) -> None:
    webhook = hook(services, project)
    ping_webhook(webhook.id, project_id=project, uow=services.uow)
    notifier = Notifier(uow=services.uow, send=Post(), key=lambda: MASTER)

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError):
            notifier.round()
    (sender,) = notifier.round()
    sender.join(30)
    assert found(services, webhook)[0].state is DeliveryState.DELIVERED


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


def test_a_project_has_no_more_webhooks_where_several_make_the_last_one(
    services, project, monkeypatch
) -> None:
    for _ in range(MAX_WEBHOOKS - 1):
        hook(services, project)
    of_project = SqlWebhooks.of_project

    def slowly(store: SqlWebhooks, project_id: ProjectId) -> Any:
        counted = of_project(store, project_id)
        time.sleep(0.2)
        return counted

    monkeypatch.setattr(SqlWebhooks, "of_project", slowly)

    def make() -> None:
        with contextlib.suppress(Conflict):
            hook(services, project)

    threads = [threading.Thread(target=make) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with services.uow(read_only=True) as store:
        assert len(store.webhooks.of_project(project)) == MAX_WEBHOOKS


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
        for webhook in webhooks_due(serving=[], n_senders=4, uow=services.uow):
            send = Post([Answer(status=410)])
            deliver_next(webhook.id, send=send, master=MASTER, jitter=0.0, uow=services.uow)
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
