"""Idempotency-Key: the first answer is stored in the transaction that did the work, and given again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from bo_service.api.audit import NAMED, deed_of
from bo_service.api.context import ApiContext, Caller
from bo_service.domain.errors import IdempotencyMismatch, Invalid, ServiceError
from bo_service.domain.records import StoredReply
from bo_service.orchestrator.contention import retried
from bo_service.orchestrator.ports import Store, UnitOfWork
from surrogates.errors import Problem

HEADER: Final = "idempotency-key"
MAX_KEY_CHARACTERS: Final = 256

"""So often is work tried that stands in another transaction's way."""

Act = Callable[[UnitOfWork], tuple[int, Mapping[str, Any]]]
"""Does the work in the unit of work it is given; returns status and body."""


class _Joined:
    """A store inside somebody else's transaction: its commit is only noted."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.is_committed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self) -> None:
        self.is_committed = True


@dataclass(slots=True)
class JoinedUnitOfWork:
    """Lets a step run inside an open transaction, which commits for it."""

    store: Store
    has_committed: bool = field(default=False)

    @contextmanager
    def __call__(self, *, read_only: bool = False) -> Iterator[Any]:
        del read_only
        joined = _Joined(self.store)
        try:
            yield joined
        finally:
            self.has_committed = self.has_committed or joined.is_committed


def once(
    request: Request,
    body: BaseModel | Mapping[str, Any],
    act: Act,
    *,
    caller: Caller,
    context: ApiContext,
    shown_once: str | None = None,
) -> Response:
    """Do the work, or repeat the answer given to the same key before.

    The field named `shown_once` is not stored: a repeated answer has null there.
    Raises: IdempotencyMismatch where the key came with another request; whatever the work raises.
    """
    deed = deed_of(request)
    if deed is not None and isinstance(body, BaseModel):
        deed.is_about({name: getattr(body, name, None) for name in NAMED})
    return retried(lambda: _once(request, body, act, caller=caller, context=context, shown_once=shown_once))


def _once(
    request: Request,
    body: BaseModel | Mapping[str, Any],
    act: Act,
    *,
    caller: Caller,
    context: ApiContext,
    shown_once: str | None,
) -> Response:
    key = request.headers.get(HEADER)
    if key is None:
        status, reply = act(context.uow)
        return JSONResponse(reply, status_code=status)
    if not 0 < len(key) <= MAX_KEY_CHARACTERS:
        raise Invalid(
            [Problem("Idempotency-Key", f"has {len(key)} characters, not 1 to {MAX_KEY_CHARACTERS}")]
        )
    digest = _digest(request, body)
    with context.uow() as store:
        known = store.records.reply(caller.project_id, key)
        if known is not None:
            return _repeat(known, digest)
        joined = JoinedUnitOfWork(store)
        try:
            status, reply = act(joined)
        except ServiceError:
            # a refused late result leaves its note
            if joined.has_committed:
                store.commit()
            raise
        text = _compact(reply)
        # a claim that gave nothing may be tried again under its key
        if status != 202:
            kept = text if shown_once is None else _compact({**reply, shown_once: None})
            store.records.remember_reply(
                caller.project_id,
                key,
                StoredReply(request_hash=digest, status=status, body=kept),
                now=store.now(),
            )
        if joined.has_committed or status != 202:
            store.commit()
    return Response(text, status_code=status, media_type="application/json")


def _compact(reply: Mapping[str, Any]) -> str:
    return json.dumps(reply, separators=(",", ":"), allow_nan=False)


def _digest(request: Request, body: BaseModel | Mapping[str, Any]) -> str:
    content = body.model_dump_json() if isinstance(body, BaseModel) else json.dumps(body, sort_keys=True)
    return hashlib.sha256(f"{request.method} {request.url.path}\n{content}".encode()).hexdigest()


def _repeat(known: StoredReply, digest: str) -> Response:
    if known.request_hash != digest:
        raise IdempotencyMismatch(
            "this Idempotency-Key was used with another request", hint="use a new key for a new request"
        )
    return Response(
        known.body,
        status_code=known.status,
        media_type="application/json",
        headers={"Idempotency-Replayed": "true"},
    )
