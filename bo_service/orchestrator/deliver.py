"""Beside the loop: one message leaves for a webhook, outside any transaction, and what became of it is noted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from bo_service.domain.errors import NotFound
from bo_service.domain.ids import WebhookId
from bo_service.domain.notice import body_of
from bo_service.domain.signing import MasterKey, signature_headers
from bo_service.domain.webhook import MAX_TRIES, Answer, Delivery, DeliveryState, DueWebhook, Webhook
from bo_service.orchestrator.ports import UnitOfWork, Webhooks

Send = Callable[[str, Mapping[str, str], bytes], Answer]
"""Posts a body with headers to a URL within SEND_SECONDS; an answer also where nobody answers."""

SEND_SECONDS: Final = 15.0
LOOKUP_SECONDS: Final = 5.0
"""So long the resolver is waited for, before the message is sent."""

SENDER_HAS: Final = timedelta(seconds=SEND_SECONDS + LOOKUP_SECONDS + 10)
"""A sender that is silent for so long has died: another one sends the message, under the same id."""

SLOW: Final = timedelta(seconds=1)
"""After a try that took longer, the webhook's other messages go to the end of the line."""

OTHER_KEY: Final = "BO_SECRET_KEY where this is sent from is not the one the webhook was made with"


def webhooks_due(*, serving: Collection[DueWebhook], n_senders: int, uow: UnitOfWork) -> list[DueWebhook]:
    """Webhooks with a due delivery for the senders that those served already leave free."""
    n_free = n_senders - len(serving)
    if n_free <= 0:
        return []
    with uow(read_only=True) as store:
        without = sorted(webhook.id for webhook in serving)
        due = store.webhooks.due(now=store.now(), without=without, limit=n_free)
    return fair_share(due, serving=serving, n_senders=n_senders)


def fair_share(
    due: Sequence[DueWebhook], *, serving: Collection[DueWebhook], n_senders: int
) -> list[DueWebhook]:
    """Those of `due` (longest waiting first) that free senders serve next.

    The project that has the fewest senders comes first. Failing webhooks never have the last sender: their tries
    take long.
    """
    left, chosen = list(due), list[DueWebhook]()
    n_failing = sum(webhook.is_failing for webhook in serving)
    n_of = Counter(webhook.project_id for webhook in serving)
    while len(serving) + len(chosen) < n_senders:
        fit = [webhook for webhook in left if not webhook.is_failing or n_failing < n_senders - 1]
        if not fit:
            break
        best = min(fit, key=lambda webhook: n_of[webhook.project_id])
        left.remove(best)
        chosen.append(best)
        n_failing += best.is_failing
        n_of[best.project_id] += 1
    return chosen


def deliver_next(
    webhook_id: WebhookId, *, send: Send, master: MasterKey, jitter: float, uow: UnitOfWork
) -> bool:
    """Send the webhook's message that is due longest; False where another sender has it.

    At least once: a sender that dies before it noted the answer is followed by another. Any number may run.
    """
    with uow() as store:
        now = store.now()
        delivery = store.webhooks.take(webhook_id, now=now, until=now + SENDER_HAS)
        if delivery is None:
            return False
        webhook = store.webhooks.get(webhook_id)
        store.commit()
    if delivery.n_tries > MAX_TRIES:
        answer = Answer(error="its senders died, one after the other")
    else:
        answer = _sent(delivery, webhook, send=send, master=master, now=now)
    _settle(delivery, answer, began=now, jitter=jitter, uow=uow)
    return True


def _sent(delivery: Delivery, webhook: Webhook, *, send: Send, master: MasterKey, now: datetime) -> Answer:
    if master.check(webhook.id, webhook.generation) != webhook.secret_check:
        return Answer(error=OTHER_KEY)
    body = body_of(delivery.payload, webhook.format)
    secrets = [master.secret(webhook.id, generation) for generation in webhook.generations(now)]
    headers = signature_headers(delivery.id, int(now.timestamp()), body, secrets=secrets)
    return send(webhook.url, headers, body)


def _settle(delivery: Delivery, answer: Answer, *, began: datetime, jitter: float, uow: UnitOfWork) -> None:
    """Note the answer on the delivery and on its webhook, which may be disabled by it."""
    with uow() as store:
        now = store.now()
        try:
            # the webhook first: every transaction locks in this order
            known = store.webhooks.get(delivery.webhook_id, lock=True)
        except NotFound:
            # removed while the message was on its way
            return
        webhook = known.after(answer, now=now)
        tried = delivery.after(answer, is_last=webhook.disabled_at is not None, now=now, jitter=jitter)
        if not store.webhooks.settle(tried):
            return
        if tried.state is DeliveryState.FAILED and not store.webhooks.n_pending(webhook.id):
            webhook = webhook.left_alone()
        if webhook != known:
            store.webhooks.save(webhook)
        if webhook.disabled_at is not None and known.disabled_at is None:
            store.webhooks.give_up(webhook.id, reason=webhook.disabled_reason or "disabled", now=now)
        is_well_again = answer.is_good and known.failing_since is not None
        _line_up(tried, store.webhooks, is_well_again=is_well_again, is_slow=now - began > SLOW, now=now)
        store.commit()


def _line_up(
    tried: Delivery, webhooks: Webhooks, *, is_well_again: bool, is_slow: bool, now: datetime
) -> None:
    """Say when the webhook's other messages are due: after a failed try no sooner than the one that was tried."""
    if is_well_again:
        webhooks.release(tried.webhook_id, now=now)
    if tried.state is DeliveryState.PENDING:
        webhooks.hold(tried.webhook_id, now=now, until=tried.ready_at)
    elif is_slow:
        webhooks.hold(tried.webhook_id, now=now, until=now)
