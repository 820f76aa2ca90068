"""Routes of API keys."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from bo_service.api.context import Admin, Context
from bo_service.api.idempotency import once
from bo_service.api.schemas import KeyIn
from bo_service.api.views import key_view
from bo_service.orchestrator.ports import UnitOfWork

router = APIRouter(prefix="/v1/keys", tags=["keys"])


@router.post("", status_code=201)
def create(body: KeyIn, request: Request, caller: Admin, context: Context) -> Response:
    """A new key; its text is in this answer and nowhere else."""

    def act(uow: UnitOfWork) -> tuple[int, dict[str, Any]]:
        key, text = context.create_key(body.name, body.scope, project=body.project or caller.project, uow=uow)
        return 201, key_view(key) | {"key": text}

    # the text of a key is kept nowhere, not even for a repeated answer
    return once(request, body, act, caller=caller, context=context, shown_once="key")


@router.get("")
def page(caller: Admin, context: Context) -> JSONResponse:
    """The keys of the caller's project, revoked ones too."""
    with context.uow(read_only=True) as store:
        return JSONResponse({"items": [key_view(key) for key in store.records.keys(caller.project_id)]})


@router.delete("/{key}")
def revoke(key: str, caller: Admin, context: Context) -> JSONResponse:
    """End a key; other processes follow within seconds."""
    with context.uow() as store:
        revoked = store.records.revoke_key(caller.project_id, key, now=store.now())
        store.commit()
    context.memory.clear()
    return JSONResponse(key_view(revoked))
