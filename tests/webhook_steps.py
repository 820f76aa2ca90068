"""Steps of the webhook tests: a webhook, what was written for it, and a network that notes what is sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bo_service.bootstrap import Services
from bo_service.domain.ids import ProjectId
from bo_service.domain.signing import MasterKey
from bo_service.domain.webhook import (
    LISTENABLE,
    Answer,
    Delivery,
    Webhook,
)
from bo_service.orchestrator.deliver import deliver_next
from bo_service.orchestrator.manage_webhooks import (
    NewWebhook,
    create_webhook,
)

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
