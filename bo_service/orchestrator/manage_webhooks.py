"""Beside the loop: webhooks are made, rotated, tried, enabled and removed; deliveries are asked for again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bo_service.domain.errors import Conflict, NotConfigured
from bo_service.domain.ids import DeliveryId, ProjectId, WebhookId, new_id
from bo_service.domain.notice import ping_of
from bo_service.domain.signing import MasterKey, shown
from bo_service.domain.webhook import (
    MAX_PENDING,
    MAX_WEBHOOKS,
    Delivery,
    DeliveryState,
    NoticeKind,
    Webhook,
    WebhookFormat,
)
from bo_service.orchestrator.ports import Store, UnitOfWork

Key = Callable[[], MasterKey | None]
"""Finds the master key; None where this service has none that its other machines share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWebhook:
    """What the user wants to hear, and where; the URL is checked already."""

    url: str
    kinds: tuple[NoticeKind, ...]
    study: str | None = None
    """Id or name; None for every study of the project."""
    format: WebhookFormat = WebhookFormat.JSON


def create_webhook(
    wanted: NewWebhook, *, key: Key, project_id: ProjectId, uow: UnitOfWork
) -> tuple[Webhook, str]:
    """A webhook and its secret, which is shown this once.

    Raises: NotFound (the study), Conflict (too many), NotConfigured.
    """
    master = _required(key)
    webhook_id = WebhookId(new_id())
    with uow() as store:
        study = store.studies.find(project_id, wanted.study) if wanted.study is not None else None
        # who makes another one at the same time waits until this one counts
        store.records.lock_project(project_id)
        if len(store.webhooks.of_project(project_id)) >= MAX_WEBHOOKS:
            raise Conflict(f"the project has {MAX_WEBHOOKS} webhooks", hint="delete one first")
        webhook = Webhook(
            id=webhook_id,
            project_id=project_id,
            study_id=study.id if study else None,
            url=wanted.url,
            kinds=wanted.kinds,
            format=wanted.format,
            secret_check=master.check(webhook_id, 1),
            created_at=store.now(),
        )
        store.webhooks.add(webhook)
        store.commit()
    return webhook, shown(master.secret(webhook.id, webhook.generation))


def rotate_secret(
    webhook_id: str, *, key: Key, project_id: ProjectId, uow: UnitOfWork
) -> tuple[Webhook, str]:
    """A new secret, shown this once; for a day messages carry a signature of the old one too.

    Raises: NotFound, NotConfigured.
    """
    master = _required(key)
    with uow() as store:
        webhook = store.webhooks.find(project_id, webhook_id, lock=True)
        check = master.check(webhook.id, webhook.generation + 1)
        webhook = webhook.rotated(check, now=store.now())
        store.webhooks.save(webhook)
        store.commit()
    return webhook, shown(master.secret(webhook.id, webhook.generation))


def remove_webhook(webhook_id: str, *, project_id: ProjectId, uow: UnitOfWork) -> Webhook:
    """Gone with its deliveries. Raises: NotFound."""
    with uow() as store:
        webhook = store.webhooks.find(project_id, webhook_id, lock=True)
        store.webhooks.remove(webhook.id)
        store.commit()
    return webhook


def enable_webhook(webhook_id: str, *, project_id: ProjectId, uow: UnitOfWork) -> Webhook:
    """Let a disabled webhook hear again of what happens from now on. Raises: NotFound."""
    with uow() as store:
        webhook = store.webhooks.find(project_id, webhook_id, lock=True).enabled()
        store.webhooks.save(webhook)
        store.commit()
    return webhook


def ping_webhook(webhook_id: str, *, project_id: ProjectId, uow: UnitOfWork) -> Delivery:
    """Queue a test message, to a disabled webhook too. Raises: NotFound, Conflict (too many wait)."""
    with uow() as store:
        webhook, now = store.webhooks.find(project_id, webhook_id, lock=True), store.now()
        _require_room(webhook, store)
        delivery = Delivery(
            id=DeliveryId(new_id()),
            webhook_id=webhook.id,
            study_id=None,
            kind=NoticeKind.PING,
            payload=ping_of(webhook, at=now),
            ready_at=now,
            created_at=now,
            updated_at=now,
        )
        store.webhooks.add_deliveries([delivery])
        store.commit()
    return delivery


def retry_delivery(webhook_id: str, delivery_id: str, *, project_id: ProjectId, uow: UnitOfWork) -> Delivery:
    """Send a delivery again now, under its old id, whatever became of it.

    Raises: NotFound, Conflict (too many wait).
    """
    with uow() as store:
        webhook = store.webhooks.find(project_id, webhook_id, lock=True)
        known = store.webhooks.delivery(webhook.id, delivery_id)
        if known.state is not DeliveryState.PENDING:
            _require_room(webhook, store)
        delivery = known.requeued(now=store.now())
        store.webhooks.save_delivery(delivery)
        store.commit()
    return delivery


def _require_room(webhook: Webhook, store: Store) -> None:
    if store.webhooks.n_pending(webhook.id) >= MAX_PENDING:
        raise Conflict(
            f"{MAX_PENDING} messages wait for the webhook",
            hint="let its receiver answer, or delete the webhook",
        )


def _required(key: Key) -> MasterKey:
    master = key()
    if master is None:
        raise NotConfigured(
            "webhooks need BO_SECRET_KEY where BO_COMPUTE is external: their secrets follow from it",
            hint="give the API and every relay the same random text of at least 32 characters",
        )
    return master
