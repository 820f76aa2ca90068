"""Routes of API keys."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from bo_service.api.context import Admin, Context
from bo_service.api.idempotency import once
from bo_service.api.schemas import KeyIn, RotateIn
from bo_service.api.views import key_view
from bo_service.orchestrator.manage_keys import create_key, revoke_key, rotate_key
from bo_service.orchestrator.ports import UnitOfWork

router = APIRouter(prefix="/v1/keys", tags=["keys"])


@router.post("", status_code=201)
def create(body: KeyIn, request: Request, caller: Admin, context: Context) -> Response:
    """A new key; its text is in this answer and nowhere else."""
    lifetime = None if body.expires_in_seconds is None else timedelta(seconds=body.expires_in_seconds)

    def act(uow: UnitOfWork) -> tuple[int, dict[str, Any]]:
        key, text = create_key(
            body.name, body.scope, project=body.project or caller.project, lifetime=lifetime, uow=uow
        )
        return 201, key_view(key) | {"key": text}

    # the text of a key is kept nowhere, not even for a repeated answer
    return once(request, body, act, caller=caller, context=context, shown_once="key")


@router.get("")
def page(caller: Admin, context: Context) -> JSONResponse:
    """The keys of the caller's project, those that ended too."""
    with context.uow(read_only=True) as store:
        return JSONResponse({"items": [key_view(key) for key in store.records.keys(caller.project_id)]})


@router.post("/{key}/rotate", status_code=201)
def rotate(
    key: str, request: Request, caller: Admin, context: Context, body: RotateIn | None = None
) -> Response:
    """A new key in a key's place; the old one still works for `grace_seconds`."""
    given = body or RotateIn()

    def act(uow: UnitOfWork) -> tuple[int, dict[str, Any]]:
        grace = timedelta(seconds=given.grace_seconds)
        new, text = rotate_key(key, grace=grace, project_id=caller.project_id, uow=uow)
        return 201, key_view(new) | {"key": text}

    answer = once(request, given, act, caller=caller, context=context, shown_once="key")
    context.memory.clear()
    return answer


@router.delete("/{key}")
def revoke(key: str, caller: Admin, context: Context) -> JSONResponse:
    """End a key; other processes follow within seconds."""
    revoked = revoke_key(key, project_id=caller.project_id, uow=context.uow)
    context.memory.clear()
    return JSONResponse(key_view(revoked))
