"""Webhooks and their deliveries in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, delete, func, insert, or_, select, update

from bo_service.domain.errors import NotFound
from bo_service.domain.ids import DeliveryId, ProjectId, StudyId, WebhookId
from bo_service.domain.records import Page
from bo_service.domain.webhook import (
    Delivery,
    DeliveryState,
    DueWebhook,
    NoticeKind,
    Webhook,
    WebhookFormat,
)
from bo_service.storage.cursors import Cursors
from bo_service.storage.rows import Row
from bo_service.storage.tables import DeliveryRow, WebhookRow, table_of

WEBHOOKS = table_of(WebhookRow)
DELIVERIES = table_of(DeliveryRow)
PENDING = DeliveryState.PENDING.value

_N_PENDING = (
    select(func.count())
    .select_from(DELIVERIES)
    .where(DELIVERIES.c.webhook_id == WEBHOOKS.c.id, DELIVERIES.c.state == PENDING)
    .correlate(WEBHOOKS)
    .scalar_subquery()
    .label("n_pending")
)

# FOR KEY SHARE keeps a webhook from being removed under a new delivery, and nobody else from anything
_LISTENING = (
    select(WEBHOOKS, _N_PENDING)
    .where(
        WEBHOOKS.c.project_id == bindparam("project"),
        or_(WEBHOOKS.c.study_id.is_(None), WEBHOOKS.c.study_id == bindparam("study")),
        WEBHOOKS.c.disabled_at.is_(None),
    )
    .order_by(WEBHOOKS.c.id)
    .with_for_update(read=True, key_share=True, of=WEBHOOKS)
)


@dataclass(frozen=True, slots=True)
class SqlWebhooks:
    """See ports.Webhooks."""

    connection: Connection

    def add(self, webhook: Webhook) -> None:
        self.connection.execute(
            insert(WEBHOOKS),
            {
                "id": webhook.id,
                "project_id": webhook.project_id,
                "study_id": webhook.study_id,
                "url": webhook.url,
                "kinds": [kind.value for kind in webhook.kinds],
                "format": webhook.format.value,
                "created_at": webhook.created_at,
                **_changing(webhook),
            },
        )

    def get(self, webhook_id: WebhookId, *, lock: bool = False) -> Webhook:
        return self._one(webhook_id, lock=lock)

    def find(self, project_id: ProjectId, webhook_id: str, *, lock: bool = False) -> Webhook:
        return self._one(webhook_id, WEBHOOKS.c.project_id == project_id, lock=lock)

    def _one(self, webhook_id: str, *also: Any, lock: bool) -> Webhook:
        query = select(WEBHOOKS).where(WEBHOOKS.c.id == webhook_id, *also)
        # weaker than FOR UPDATE: whoever adds a delivery need not wait
        row = self.connection.execute(query.with_for_update(key_share=True) if lock else query).first()
        if row is None:
            raise NotFound("webhook", webhook_id)
        return _webhook_from(row)

    def of_project(self, project_id: ProjectId) -> Sequence[Webhook]:
        query = select(WEBHOOKS).where(WEBHOOKS.c.project_id == project_id).order_by(WEBHOOKS.c.id)
        return [_webhook_from(row) for row in self.connection.execute(query)]

    def listening(self, project_id: ProjectId, study_id: StudyId) -> Sequence[tuple[Webhook, int]]:
        rows = self.connection.execute(_LISTENING, {"project": project_id, "study": study_id})
        return [(_webhook_from(row), row.n_pending) for row in rows]

    def save(self, webhook: Webhook) -> None:
        self.connection.execute(
            update(WEBHOOKS).where(WEBHOOKS.c.id == webhook.id).values(_changing(webhook))
        )

    def remove(self, webhook_id: WebhookId) -> None:
        self.connection.execute(delete(WEBHOOKS).where(WEBHOOKS.c.id == webhook_id))

    def add_deliveries(self, deliveries: Sequence[Delivery]) -> None:
        self.connection.execute(
            insert(DELIVERIES),
            [
                {
                    "id": delivery.id,
                    "webhook_id": delivery.webhook_id,
                    "study_id": delivery.study_id,
                    "kind": delivery.kind.value,
                    "payload": dict(delivery.payload),
                    "created_at": delivery.created_at,
                    **_progress(delivery),
                }
                for delivery in deliveries
            ],
        )

    def delivery(self, webhook_id: WebhookId, delivery_id: str) -> Delivery:
        query = select(DELIVERIES).where(
            DELIVERIES.c.id == delivery_id, DELIVERIES.c.webhook_id == webhook_id
        )
        row = self.connection.execute(query).first()
        if row is None:
            raise NotFound("delivery", delivery_id)
        return _delivery_from(row)

    def deliveries(
        self, webhook_id: WebhookId, *, state: DeliveryState | None, cursor: str | None, limit: int
    ) -> Page[Delivery]:
        cursors = Cursors("deliveries", webhook_id)
        query = select(DELIVERIES).where(DELIVERIES.c.webhook_id == webhook_id)
        if state is not None:
            query = query.where(DELIVERIES.c.state == state.value)
        if cursor is not None:
            (last,) = cursors.read(cursor, str)
            query = query.where(DELIVERIES.c.id < last)
        rows = self.connection.execute(query.order_by(DELIVERIES.c.id.desc()).limit(limit + 1)).all()
        more = len(rows) > limit
        return Page(
            items=[_delivery_from(row) for row in rows[:limit]],
            next_cursor=cursors.after(rows[limit - 1].id) if more else None,
        )

    def n_pending(self, webhook_id: WebhookId) -> int:
        query = select(_N_PENDING).select_from(WEBHOOKS).where(WEBHOOKS.c.id == webhook_id)
        return int(self.connection.execute(query).scalar() or 0)

    def due(self, *, now: datetime, without: Sequence[WebhookId], limit: int) -> Sequence[DueWebhook]:
        since = func.min(DELIVERIES.c.ready_at)
        is_failing = WEBHOOKS.c.failing_since.is_not(None)
        place = func.row_number().over(
            partition_by=[WEBHOOKS.c.project_id, is_failing], order_by=[since, WEBHOOKS.c.id]
        )
        waiting = (
            select(
                WEBHOOKS.c.id,
                WEBHOOKS.c.project_id,
                is_failing.label("is_failing"),
                since.label("since"),
                place.label("place"),
            )
            .join_from(DELIVERIES, WEBHOOKS, DELIVERIES.c.webhook_id == WEBHOOKS.c.id)
            .where(DELIVERIES.c.state == PENDING, DELIVERIES.c.ready_at <= now)
            .group_by(WEBHOOKS.c.id, WEBHOOKS.c.project_id, WEBHOOKS.c.failing_since)
        )
        if without:
            waiting = waiting.where(WEBHOOKS.c.id.not_in(without))
        found = waiting.subquery()
        query = select(found).where(found.c.place <= limit).order_by(found.c.since, found.c.id)
        return [
            DueWebhook(WebhookId(row.id), ProjectId(row.project_id), bool(row.is_failing))
            for row in self.connection.execute(query)
        ]

    def take(self, webhook_id: WebhookId, *, now: datetime, until: datetime) -> Delivery | None:
        query = (
            select(DELIVERIES)
            .where(
                DELIVERIES.c.webhook_id == webhook_id,
                DELIVERIES.c.state == PENDING,
                DELIVERIES.c.ready_at <= now,
            )
            .order_by(DELIVERIES.c.ready_at, DELIVERIES.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        row = self.connection.execute(query).first()
        if row is None:
            return None
        taken = _delivery_from(row).taken(until=until)
        self.save_delivery(taken)
        return taken

    def save_delivery(self, delivery: Delivery) -> None:
        self.connection.execute(
            update(DELIVERIES).where(DELIVERIES.c.id == delivery.id).values(_progress(delivery))
        )

    def settle(self, delivery: Delivery) -> bool:
        is_mine = (
            DELIVERIES.c.id == delivery.id,
            DELIVERIES.c.state == PENDING,
            DELIVERIES.c.n_tries == delivery.n_tries,
        )
        result = self.connection.execute(update(DELIVERIES).where(*is_mine).values(_progress(delivery)))
        return bool(result.rowcount)

    def hold(self, webhook_id: WebhookId, *, now: datetime, until: datetime) -> None:
        # what is on its way is not due: its sender keeps it
        self.connection.execute(
            update(DELIVERIES)
            .where(*_waits_for(webhook_id), DELIVERIES.c.ready_at <= now)
            .values(ready_at=until)
        )

    def release(self, webhook_id: WebhookId, *, now: datetime) -> None:
        # what was never tried is on its way with nobody
        self.connection.execute(
            update(DELIVERIES)
            .where(*_waits_for(webhook_id), DELIVERIES.c.n_tries == 0, DELIVERIES.c.ready_at > now)
            .values(ready_at=now)
        )

    def give_up(self, webhook_id: WebhookId, *, reason: str, now: datetime) -> int:
        result = self.connection.execute(
            update(DELIVERIES)
            .where(*_waits_for(webhook_id))
            .values(state=DeliveryState.FAILED.value, last_error=reason, updated_at=now)
        )
        return int(result.rowcount)

    def forget_deliveries(self, *, before: datetime) -> int:
        is_old = (DELIVERIES.c.state != PENDING, DELIVERIES.c.updated_at < before)
        return int(self.connection.execute(delete(DELIVERIES).where(*is_old)).rowcount)


def _waits_for(webhook_id: WebhookId) -> tuple[ColumnElement[bool], ...]:
    return DELIVERIES.c.webhook_id == webhook_id, DELIVERIES.c.state == PENDING


def _changing(webhook: Webhook) -> dict[str, Any]:
    """The columns that change."""
    return {
        "generation": webhook.generation,
        "secret_check": webhook.secret_check,
        "rotated_at": webhook.rotated_at,
        "failing_since": webhook.failing_since,
        "disabled_at": webhook.disabled_at,
        "disabled_reason": webhook.disabled_reason,
    }


def _progress(delivery: Delivery) -> dict[str, Any]:
    """The columns that change."""
    return {
        "state": delivery.state.value,
        "n_tries": delivery.n_tries,
        "ready_at": delivery.ready_at,
        "status": delivery.status,
        "last_error": delivery.last_error,
        "updated_at": delivery.updated_at,
    }


def _webhook_from(row: Row) -> Webhook:
    return Webhook(
        id=WebhookId(row.id),
        project_id=ProjectId(row.project_id),
        study_id=StudyId(row.study_id) if row.study_id else None,
        url=row.url,
        kinds=tuple(NoticeKind(kind) for kind in row.kinds),
        format=WebhookFormat(row.format),
        generation=row.generation,
        secret_check=row.secret_check,
        rotated_at=row.rotated_at,
        failing_since=row.failing_since,
        disabled_at=row.disabled_at,
        disabled_reason=row.disabled_reason,
        created_at=row.created_at,
    )


def _delivery_from(row: Row) -> Delivery:
    return Delivery(
        id=DeliveryId(row.id),
        webhook_id=WebhookId(row.webhook_id),
        study_id=StudyId(row.study_id) if row.study_id else None,
        kind=NoticeKind(row.kind),
        payload=row.payload,
        state=DeliveryState(row.state),
        n_tries=row.n_tries,
        ready_at=row.ready_at,
        status=row.status,
        last_error=row.last_error,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
