"""The HTTP process: settings in, application out."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from bo_service.api.app import build_app
from bo_service.api.context import ApiContext, Bell, Caller
from bo_service.bootstrap import (
    DEFAULT_PROJECT,
    build_services,
    create_key,
    ensure_default_project,
    hash_key,
    local_key,
    open_services,
    upgrade_database,
)
from bo_service.compute_child import ComputeChild
from bo_service.domain.records import Scope
from bo_service.settings import Settings

logger = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application with its compute child, ready for an ASGI server; the database must be migrated."""
    settings = settings or Settings()
    bell = Bell()
    child = None
    if settings.compute == "embedded":
        child = ComputeChild(on_change=bell.ring, environment=settings.compute_environment())
        services = build_services(settings, wakeup=child)
    else:
        services = open_services(settings, on_study=bell.ring, on_gap=bell.ring_all)
    anonymous = None
    if not settings.require_keys:
        project_id = ensure_default_project(services.uow)
        anonymous = Caller(project_id, DEFAULT_PROJECT, Scope.ADMIN, "keys are off")
    context = ApiContext(
        uow=services.uow,
        bell=bell,
        hash_key=hash_key,
        create_key=create_key,
        anonymous=anonymous,
        is_writer_idle=services.transactions.is_idle,
        compute=child,
        max_wait_seconds=settings.max_wait_seconds,
        max_body_bytes=int(settings.max_body_megabytes * 1e6),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if child is not None:
            child.start()
        yield
        if child is not None:
            child.stop()
        services.close()

    return build_app(context, lifespan=lifespan)


def serve(host: str, port: int, settings: Settings | None = None) -> None:
    """Migrate, make the local user's key, and serve until interrupted; port 0 takes a free one.

    Raises: SystemExit where the port is taken.
    """
    settings = settings or Settings()
    listening = _listen(host, port)
    logging.basicConfig(
        level=settings.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    upgrade_database(settings)
    services = build_services(settings)
    url = f"http://{host}:{listening.getsockname()[1]}"
    key = local_key(settings, url, uow=services.uow)
    services.transactions.engine.dispose()
    sys.stdout.write(
        f"bo-service at {url} (API: {url}/docs)\n"
        f"data in {settings.resolved_database_url()}\n"
        f"key {key}\n"
        f"     kept in {settings.credentials_path}: `bo` and the Python client on this machine find it there\n"
    )
    sys.stdout.flush()
    config = uvicorn.Config(create_app(settings), log_level=settings.log_level, access_log=False)
    uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is told before anything else happens; port 0 takes a free one."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise SystemExit(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port"
        ) from error
    return listening
