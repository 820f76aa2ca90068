"""Routes of webhooks and their deliveries."""

from __future__ import annotations

from typing import Any, Final

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from bo_service.api import operation_answers as answers
from bo_service.api.context import ApiContext, Caller, Context, Editor, Viewer
from bo_service.api.documented import from_path, leads, says
from bo_service.api.idempotency import HEADER, once
from bo_service.api.schemas import Cursor, DeliveryKey, Limit, ReasonIn, WebhookIn, WebhookKey
from bo_service.api.views import delivery_view, webhook_view
from bo_service.domain.records import Scope
from bo_service.domain.webhook import DeliveryState, Webhook
from bo_service.orchestrator.contention import retried
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

TO_WEBHOOK: Final = {
    "read": leads("read_webhook", webhook="/id"),
    "test": leads("test_webhook", webhook="/id"),
    "rotate": leads("rotate_webhook", webhook="/id"),
    "enable": leads("enable_webhook", webhook="/id"),
    "deliveries": leads("list_deliveries", webhook="/id"),
    "remove": leads("remove_webhook", webhook="/id"),
}


def _seen_by(caller: Caller, webhook: Webhook) -> dict[str, Any]:
    return webhook_view(webhook, with_path=caller.scope.includes(Scope.EDITOR))


@router.post(
    "", **says("create_webhook", answers.WebhookWithSecret, status=201, is_once=True, leads_to=TO_WEBHOOK)
)
async def create(body: WebhookIn, request: Request, caller: Editor, context: Context) -> Response:
    """Have a URL told of studies; the secret that signs the messages is in this answer and nowhere else."""
    # an answer given before is repeated though the name is gone
    if not await run_in_threadpool(_is_repeated, request, caller, context):
        await _check_receiver(body.url, caller, context)
    wanted = NewWebhook(
        url=body.url, kinds=tuple(dict.fromkeys(body.kinds)), study=body.study, format=body.format
    )

    def act(uow: UnitOfWork) -> tuple[int, dict[str, Any]]:
        webhook, secret = create_webhook(
            wanted, key=context.secret_key, project_id=caller.project_id, uow=uow
        )
        return 201, _seen_by(caller, webhook) | {"secret": secret}

    return await run_in_threadpool(
        once, request, body, act, caller=caller, context=context, shown_once="secret"
    )


def _is_repeated(request: Request, caller: Caller, context: ApiContext) -> bool:
    key = request.headers.get(HEADER)
    if key is None:
        return False
    with context.uow(read_only=True) as store:
        return store.records.reply(caller.project_id, key) is not None


async def _check_receiver(url: str, caller: Caller, context: ApiContext) -> None:
    """Look the name up beside the threads of the requests: some names take as long as they may.

    Raises: Invalid.
    """
    async with context.turns.of(f"look-ups of {caller.project_id}"):
        await to_thread.run_sync(context.check_receiver, url, limiter=context.look_ups)


@router.get("", **says("list_webhooks", answers.WebhookPage))
def page(caller: Viewer, context: Context) -> JSONResponse:
    """The project's webhooks, oldest first; only editors see what follows the host in a URL."""
    with context.uow(read_only=True) as store:
        found = store.webhooks.of_project(caller.project_id)
    return JSONResponse({"items": [_seen_by(caller, webhook) for webhook in found]})


@router.get("/{webhook}", **says("read_webhook", answers.Webhook))
def read(webhook: WebhookKey, caller: Viewer, context: Context) -> JSONResponse:
    """One webhook."""
    with context.uow(read_only=True) as store:
        return JSONResponse(_seen_by(caller, store.webhooks.find(caller.project_id, webhook)))


@router.delete("/{webhook}", **says("remove_webhook", answers.Webhook))
def remove(webhook: WebhookKey, caller: Editor, context: Context) -> JSONResponse:
    """Remove a webhook and its deliveries, those on their way too."""
    removed = retried(lambda: remove_webhook(webhook, project_id=caller.project_id, uow=context.uow))
    return JSONResponse(_seen_by(caller, removed))


@router.post("/{webhook}/rotate", **says("rotate_webhook", answers.WebhookWithSecret, is_once=True))
def rotate(webhook: WebhookKey, request: Request, caller: Editor, context: Context) -> Response:
    """A new secret, in this answer and nowhere else; for a day messages carry signatures of both."""

    def act(uow: UnitOfWork) -> tuple[int, dict[str, Any]]:
        rotated, secret = rotate_secret(
            webhook, key=context.secret_key, project_id=caller.project_id, uow=uow
        )
        return 200, _seen_by(caller, rotated) | {"secret": secret}

    return once(request, ReasonIn(), act, caller=caller, context=context, shown_once="secret")


@router.post("/{webhook}/enable", **says("enable_webhook", answers.Webhook, is_once=True))
def enable(webhook: WebhookKey, request: Request, caller: Editor, context: Context) -> Response:
    """Tell a disabled webhook again of what happens from now on."""

    def act(uow: UnitOfWork) -> tuple[int, dict[str, Any]]:
        return 200, _seen_by(caller, enable_webhook(webhook, project_id=caller.project_id, uow=uow))

    return once(request, ReasonIn(), act, caller=caller, context=context)


@router.post(
    "/{webhook}/test",
    **says(
        "test_webhook",
        answers.Delivery,
        status=201,
        is_once=True,
        leads_to={
            "deliveries": from_path("list_deliveries", webhook="webhook"),
            "retry": leads("retry_delivery", webhook="/webhook_id", delivery="/id"),
        },
    ),
)
def ping(webhook: WebhookKey, request: Request, caller: Editor, context: Context) -> Response:
    """Send a `ping` now; its delivery says what became of it."""

    def act(uow: UnitOfWork) -> tuple[int, dict[str, Any]]:
        return 201, delivery_view(ping_webhook(webhook, project_id=caller.project_id, uow=uow))

    return once(request, ReasonIn(), act, caller=caller, context=context)


@router.get("/{webhook}/deliveries", **says("list_deliveries", answers.DeliveryPage))
def deliveries(
    webhook: WebhookKey,
    caller: Viewer,
    context: Context,
    state: DeliveryState | None = None,
    cursor: Cursor | None = None,
    limit: Limit = 100,
) -> JSONResponse:
    """The messages of the last days, newest first."""
    with context.uow(read_only=True) as store:
        webhook_id = store.webhooks.find(caller.project_id, webhook).id
        found = store.webhooks.deliveries(webhook_id, state=state, cursor=cursor, limit=limit)
    return JSONResponse(
        {"items": [delivery_view(delivery) for delivery in found.items], "next_cursor": found.next_cursor}
    )


@router.post(
    "/{webhook}/deliveries/{delivery}/retry", **says("retry_delivery", answers.Delivery, is_once=True)
)
def retry(
    webhook: WebhookKey, delivery: DeliveryKey, request: Request, caller: Editor, context: Context
) -> Response:
    """Send a message again now, under its old id."""

    def act(uow: UnitOfWork) -> tuple[int, dict[str, Any]]:
        return 200, delivery_view(retry_delivery(webhook, delivery, project_id=caller.project_id, uow=uow))

    return once(request, ReasonIn(), act, caller=caller, context=context)
