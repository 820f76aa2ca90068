"""Beside the loop: one message leaves for a webhook, outside any transaction, and what became of it is noted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Final

from bo_service.domain.errors import NotFound
from bo_service.domain.ids import WebhookId
from bo_service.domain.notice import body_of
from bo_service.domain.signing import MasterKey, signature_headers
from bo_service.domain.webhook import MAX_TRIES, Answer, Delivery, Webhook
from bo_service.orchestrator.ports import UnitOfWork

Send = Callable[[str, Mapping[str, str], bytes], Answer]
"""Posts a body with headers to a URL within SEND_SECONDS; an answer also where nobody answers."""

SEND_SECONDS: Final = 15.0
LOOKUP_SECONDS: Final = 5.0
SENDER_HAS: Final = timedelta(seconds=SEND_SECONDS + LOOKUP_SECONDS + 10)
"""A sender that is silent for so long has died: another one sends the message, under the same id."""

OTHER_KEY: Final = "BO_SECRET_KEY where this is sent from is not the one the webhook was made with"


def webhooks_due(*, without: set[WebhookId], limit: int, uow: UnitOfWork) -> list[WebhookId]:
    """Webhooks with a due delivery, save those the caller serves already."""
    with uow(read_only=True) as store:
        return list(store.webhooks.due(now=store.now(), without=sorted(without), limit=limit))


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
    _settle(delivery, answer, jitter=jitter, uow=uow)
    return True


def _sent(delivery: Delivery, webhook: Webhook, *, send: Send, master: MasterKey, now: datetime) -> Answer:
    if master.check(webhook.id, webhook.generation) != webhook.secret_check:
        return Answer(error=OTHER_KEY)
    body = body_of(delivery.payload, webhook.format)
    secrets = [master.secret(webhook.id, generation) for generation in webhook.generations(now)]
    headers = signature_headers(delivery.id, int(now.timestamp()), body, secrets=secrets)
    return send(webhook.url, headers, body)


def _settle(delivery: Delivery, answer: Answer, *, jitter: float, uow: UnitOfWork) -> None:
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
        if webhook != known:
            store.webhooks.save(webhook)
        if webhook.disabled_at is not None and known.disabled_at is None:
            store.webhooks.give_up(webhook.id, reason=webhook.disabled_reason or "disabled", now=now)
        store.commit()
