"""The HTTP application: routes, error documents, body limits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Final

import anyio.to_thread
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import bo_service
from bo_service.api.context import ApiContext
from bo_service.api.documented import document
from bo_service.api.errors import install_error_handlers, problem_response
from bo_service.api.front import Front
from bo_service.api.routers import (
    events,
    health,
    keys,
    operations,
    studies,
    suggestions,
    surrogates,
    trials,
    webhooks,
)

N_THREADS: Final = 64
"""Requests handled at the same time; waiting claims and event streams hold none."""

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class _BodyTooLarge(Exception):
    """More bytes came than are accepted."""


class BodyLimit:
    """Refuses request bodies over a size, by their header or, failing that, while they come in."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await self._refuse(scope, receive, send)
            return
        seen = 0
        has_answered = False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise _BodyTooLarge
            return message

        async def watched(message: Message) -> None:
            nonlocal has_answered
            # what the application makes of the broken body is not the answer
            if seen <= self._max_bytes:
                has_answered = True
                await send(message)

        with suppress(_BodyTooLarge):
            await self._app(scope, counted, watched)
        if seen > self._max_bytes and not has_answered:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = problem_response(
            413,
            "payload_too_large",
            f"the body is larger than {self._max_bytes} bytes",
            hint="split the import, or raise BO_MAX_BODY_MEGABYTES",
        )
        await response(scope, receive, send)


def build_app(
    context: ApiContext,
    *,
    lifespan: Lifespan | None = None,
    n_threads: int = N_THREADS,
    tracing: bool = False,
) -> FastAPI:
    """The application over a context; `lifespan` starts and ends what runs beside it."""
    app = FastAPI(
        title="bo-service",
        version=bo_service.__version__,
        summary="Bayesian optimization with pluggable surrogates",
        lifespan=_with_threads(lifespan, n_threads),
        docs_url="/docs",
        redoc_url=None,
        telemetry={"tracing": tracing, "operation_spans": False, "metrics": False, "logs": False},
        # the address of a redirect would come from the Host header, and a key might travel there
        redirect_slashes=False,
    )
    app.state.context = context
    app.add_middleware(BodyLimit, max_bytes=context.max_body_bytes)
    if context.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=context.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
            expose_headers=["Retry-After", "X-Request-ID", "Idempotency-Replayed"],
        )
    # the last one added is the first one reached
    app.add_middleware(Front)
    install_error_handlers(app)
    # routes are tried in order: the hot ones first
    for module in (trials, studies, suggestions, events, surrogates, webhooks, keys, operations, health):
        app.include_router(module.router)
    document(app)
    return app


def _with_threads(lifespan: Lifespan | None, n_threads: int) -> Any:
    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = n_threads
        if lifespan is None:
            yield
        else:
            async with lifespan(app):
                yield

    return run
