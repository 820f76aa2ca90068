"""The HTTP application: routes, error documents, middleware."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import anyio.to_thread
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

import bo_service
from bo_service.api.bodies import MAX_IMPORT_BYTES, BodyLimit
from bo_service.api.context import ApiContext
from bo_service.api.documented import document
from bo_service.api.errors import install_error_handlers
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


def build_app(
    context: ApiContext,
    *,
    lifespan: Lifespan | None = None,
    n_threads: int = N_THREADS,
    max_import_bytes: int = MAX_IMPORT_BYTES,
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
    app.add_middleware(BodyLimit, max_bytes=context.max_body_bytes, max_import_bytes=max_import_bytes)
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
