"""Routes of API keys."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from bo_service.api import answers
from bo_service.api.context import Admin, Context
from bo_service.api.documented import leads, says
from bo_service.api.idempotency import once
from bo_service.api.schemas import KeyId, KeyIn, RotateIn
from bo_service.api.views import key_view
from bo_service.domain.errors import Forbidden
from bo_service.orchestrator.contention import retried
from bo_service.orchestrator.manage_keys import create_key, revoke_key, rotate_key
from bo_service.orchestrator.ports import UnitOfWork

router = APIRouter(prefix="/v1/keys", tags=["keys"])


@router.post(
    "",
    **says(
        "create_key",
        answers.NewKey,
        status=201,
        is_once=True,
        leads_to={"rotate": leads("rotate_key", key="/id"), "revoke": leads("revoke_key", key="/id")},
    ),
)
def create(body: KeyIn, request: Request, caller: Admin, context: Context) -> Response:
    """A new key; its text is in this answer and nowhere else.

    An admin makes keys for its own project. An admin of the operators' project may also make the first key of a new
    project.
    """
    project = body.project or caller.project
    is_new = project != caller.project
    if is_new and not caller.is_operator:
        # the same words whether there is such a project or not
        raise Forbidden(
            f"a key of project {caller.project!r} makes keys for this project alone", hint="leave project out"
        )
    lifetime = None if body.expires_in_seconds is None else timedelta(seconds=body.expires_in_seconds)

    def act(uow: UnitOfWork) -> tuple[int, dict[str, Any]]:
        key, text = create_key(
            body.name, body.scope, project=project, is_new_project=is_new, lifetime=lifetime, uow=uow
        )
        return 201, key_view(key) | {"key": text}

    # the text of a key is kept nowhere, not even for a repeated answer
    return once(request, body, act, caller=caller, context=context, shown_once="key")


@router.get("", **says("list_keys", answers.KeyPage))
def page(caller: Admin, context: Context) -> JSONResponse:
    """The keys of the caller's project, those that ended too."""
    with context.uow(read_only=True) as store:
        return JSONResponse({"items": [key_view(key) for key in store.records.keys(caller.project_id)]})


@router.post("/{key}/rotate", **says("rotate_key", answers.NewKey, status=201, is_once=True))
def rotate(
    key: KeyId, request: Request, caller: Admin, context: Context, body: RotateIn | None = None
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


@router.delete("/{key}", **says("revoke_key", answers.Key))
def revoke(key: KeyId, caller: Admin, context: Context) -> JSONResponse:
    """End a key; other processes follow within seconds."""
    revoked = retried(lambda: revoke_key(key, project_id=caller.project_id, uow=context.uow))
    context.memory.clear()
    return JSONResponse(key_view(revoked))
