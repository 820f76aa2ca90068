"""Routes of webhooks and their deliveries."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from bo_service.api.context import Caller, Context, Editor, Viewer
from bo_service.api.idempotency import once
from bo_service.api.schemas import ReasonIn, WebhookIn
from bo_service.api.views import delivery_view, webhook_view
from bo_service.domain.records import Scope
from bo_service.domain.webhook import DeliveryState, Webhook
from bo_service.orchestrator.manage_webhooks import (
    NewWebhook,
    create_webhook,
    enable_webhook,
    ping_webhook,
    remove_webhook,
    retry_delivery,
    rotate_secret,
)
from bo_service.orchestrator.ports import UnitOfWork

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])

Limit = Annotated[int, Query(ge=1, le=1000)]


def _seen_by(caller: Caller, webhook: Webhook) -> dict[str, Any]:
    return webhook_view(webhook, with_path=caller.scope.includes(Scope.EDITOR))


@router.post("", status_code=201)
def create(body: WebhookIn, request: Request, caller: Editor, context: Context) -> Response:
    """Have a URL told of studies; the secret that signs the messages is in this answer and nowhere else."""
    context.check_receiver(body.url)
    wanted = NewWebhook(
        url=body.url, kinds=tuple(dict.fromkeys(body.kinds)), study=body.study, format=body.format
    )

    def act(uow: UnitOfWork) -> tuple[int, dict[str, Any]]:
        webhook, secret = create_webhook(
            wanted, key=context.secret_key, project_id=caller.project_id, uow=uow
        )
        return 201, _seen_by(caller, webhook) | {"secret": secret}

    return once(request, body, act, caller=caller, context=context, shown_once="secret")


@router.get("")
def page(caller: Viewer, context: Context) -> JSONResponse:
    """The project's webhooks, oldest first; only editors see what follows the host in a URL."""
    with context.uow(read_only=True) as store:
        found = store.webhooks.of_project(caller.project_id)
    return JSONResponse({"items": [_seen_by(caller, webhook) for webhook in found]})


@router.get("/{webhook}")
def read(webhook: str, caller: Viewer, context: Context) -> JSONResponse:
    """One webhook."""
    with context.uow(read_only=True) as store:
        return JSONResponse(_seen_by(caller, store.webhooks.find(caller.project_id, webhook)))


@router.delete("/{webhook}")
def remove(webhook: str, caller: Editor, context: Context) -> JSONResponse:
    """Remove a webhook and its deliveries, those on their way too."""
    removed = remove_webhook(webhook, project_id=caller.project_id, uow=context.uow)
    return JSONResponse(_seen_by(caller, removed))


@router.post("/{webhook}/rotate")
def rotate(webhook: str, request: Request, caller: Editor, context: Context) -> Response:
    """A new secret, in this answer and nowhere else; for a day messages carry signatures of both."""

    def act(uow: UnitOfWork) -> tuple[int, dict[str, Any]]:
        rotated, secret = rotate_secret(
            webhook, key=context.secret_key, project_id=caller.project_id, uow=uow
        )
        return 200, _seen_by(caller, rotated) | {"secret": secret}

    return once(request, ReasonIn(), act, caller=caller, context=context, shown_once="secret")


@router.post("/{webhook}/enable")
def enable(webhook: str, request: Request, caller: Editor, context: Context) -> Response:
    """Tell a disabled webhook again of what happens from now on."""

    def act(uow: UnitOfWork) -> tuple[int, dict[str, Any]]:
        return 200, _seen_by(caller, enable_webhook(webhook, project_id=caller.project_id, uow=uow))

    return once(request, ReasonIn(), act, caller=caller, context=context)


@router.post("/{webhook}/test", status_code=201)
def ping(webhook: str, request: Request, caller: Editor, context: Context) -> Response:
    """Send a `ping` now; its delivery says what became of it."""

    def act(uow: UnitOfWork) -> tuple[int, dict[str, Any]]:
        return 201, delivery_view(ping_webhook(webhook, project_id=caller.project_id, uow=uow))

    return once(request, ReasonIn(), act, caller=caller, context=context)


@router.get("/{webhook}/deliveries")
def deliveries(
    webhook: str,
    caller: Viewer,
    context: Context,
    state: DeliveryState | None = None,
    cursor: str | None = None,
    limit: Limit = 100,
) -> JSONResponse:
    """The messages of the last days, newest first."""
    with context.uow(read_only=True) as store:
        webhook_id = store.webhooks.find(caller.project_id, webhook).id
        found = store.webhooks.deliveries(webhook_id, state=state, cursor=cursor, limit=limit)
    return JSONResponse(
        {"items": [delivery_view(delivery) for delivery in found.items], "next_cursor": found.next_cursor}
    )


@router.post("/{webhook}/deliveries/{delivery}/retry")
def retry(webhook: str, delivery: str, request: Request, caller: Editor, context: Context) -> Response:
    """Send a message again now, under its old id."""

    def act(uow: UnitOfWork) -> tuple[int, dict[str, Any]]:
        return 200, delivery_view(retry_delivery(webhook, delivery, project_id=caller.project_id, uow=uow))

    return once(request, ReasonIn(), act, caller=caller, context=context)
