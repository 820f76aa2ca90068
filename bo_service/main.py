"""The HTTP process: settings in, application out."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, Final

import uvicorn
from fastapi import FastAPI

from bo_service.api.app import N_THREADS, build_app
from bo_service.api.context import ApiContext, Bell, Caller
from bo_service.api.metrics import SHARED_FOLDER
from bo_service.api.rates import Rates
from bo_service.bootstrap import (
    build_services,
    ensure_default_project,
    open_services,
    shown_url,
    survey_of,
    upgrade_database,
)
from bo_service.compute_child import ComputeChild
from bo_service.credentials import credentials_path
from bo_service.domain.records import OPERATORS_PROJECT, Scope
from bo_service.domain.target import AllowList
from bo_service.local_user import local_key
from bo_service.master_key import master_key
from bo_service.receivers import Receivers
from bo_service.settings import Settings
from bo_service.storage.signals import PostgresSignals
from bo_service.telemetry import start_logging, start_tracing

DRAIN_SECONDS: Final = 6
"""A server told to stop lets running requests finish for so long; those that wait are answered at once."""

logger = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application with its compute child, ready for an ASGI server; the database must be migrated."""
    settings = settings or Settings()
    start_logging("api", level=settings.log_level, form=settings.log_format)
    if settings.tracing:
        start_tracing("api")
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
        anonymous = Caller(project_id, OPERATORS_PROJECT, Scope.ADMIN, "keys are off")
    context = ApiContext(
        uow=services.uow,
        bell=bell,
        survey=survey_of(services),
        secret_key=partial(master_key, settings),
        check_receiver=Receivers(AllowList.of(settings.webhook_allow)).check,
        anonymous=anonymous,
        is_writer_idle=services.transactions.is_idle,
        compute=child,
        has_broker=settings.compute == "external" and bool(settings.broker_url),
        max_wait_seconds=settings.max_wait_seconds,
        max_body_bytes=int(settings.max_body_megabytes * 1e6),
        rates=Rates(settings.rate_limit),
        cors_origins=tuple(settings.cors_origins),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if child is not None:
            child.start()
        _end_with_the_parent()
        with _waits_end_at_signals(bell):
            yield
        if child is not None:
            child.stop()
        services.close()

    # a thread more than there are connections would open one for a single request, which costs more than to wait
    n_threads = N_THREADS if services.transactions.is_sqlite else settings.database_pool_size
    return build_app(
        context,
        lifespan=lifespan,
        n_threads=min(n_threads, N_THREADS),
        max_import_bytes=int(settings.max_import_megabytes * 1e6),
        tracing=settings.tracing,
    )


@contextmanager
def _waits_end_at_signals(bell: Bell) -> Iterator[None]:
    """Let waiting claims and event streams end when the server is told to stop: it waits for every answer.

    Beside the server's own handlers, and so in each of several processes.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def told(number: int, frame: FrameType | None) -> None:
        # not here: the loop may hold the bell's lock
        loop.call_soon_threadsafe(bell.close)
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    heard = [number for number, handler in before.items() if callable(handler)]
    for number in heard:
        signal.signal(number, told)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def _end_with_the_parent() -> None:
    """Let one of several HTTP processes end in good order when their parent is killed: it would keep the port."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="parent", daemon=True).start()


def _leave(*_: object) -> None:
    """What the server does with a signal once it has ended in good order, and everything before it starts."""
    raise SystemExit(0)


def serve(host: str, port: int, settings: Settings | None = None, *, processes: int = 1) -> None:
    """Migrate, make the local user's key, and serve until interrupted; port 0 takes a free one.

    Several processes share the port; they need PostgreSQL, through which they wake each other. Their settings come
    from the environment.
    Raises: SystemExit where the port is taken, or SQLite should serve several processes.
    """
    settings = settings or Settings()
    if processes > 1 and settings.resolved_database_url().startswith("sqlite"):
        raise SystemExit("several processes need PostgreSQL: set BO_DATABASE_URL, or leave --processes at 1")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    listening = _listen(host, port)
    start_logging("api", level=settings.log_level, form=settings.log_format)
    upgrade_database(settings)
    url = f"http://{host}:{listening.getsockname()[1]}"
    sys.stdout.write(
        f"bo-service at {url} (API: {url}/docs)\n"
        f"data in {shown_url(settings.resolved_database_url())}\n"
        f"{_about_the_key(settings, url)}"
    )
    sys.stdout.flush()
    options: dict[str, Any] = {
        "log_config": None,
        "access_log": False,
        "timeout_graceful_shutdown": DRAIN_SECONDS,
        # by default anybody on this machine could claim any address
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": settings.trusted_proxies,
    }
    if processes == 1:
        config = uvicorn.Config(create_app(settings), **options)
        uvicorn.Server(config).run(sockets=[listening])
        return
    port = listening.getsockname()[1]
    listening.close()  # uvicorn binds it again for the processes to share
    with _shared_compute(settings), _shared_metrics():
        uvicorn.run(
            "bo_service.main:create_app",
            factory=True,
            host=host,
            port=port,
            workers=processes,
            **options,
        )


def _about_the_key(settings: Settings, url: str) -> str:
    """The local user's key, made where it is wanted; else how to get one."""
    if not settings.local_key:
        return "no local key (BO_LOCAL_KEY): `bo key bootstrap NAME` makes one\n"
    services = build_services(settings)
    path = credentials_path()
    found = local_key(path, url, uow=services.uow)
    services.close()
    # what is no terminal is a log, and a log is no place for a key
    shown = f"key {found.key}\n     kept" if sys.stdout.isatty() else "key kept"
    said = f"{shown} in {path}: `bo` and the Python client on this machine find it there\n"
    if found.current_url != url:
        return (
            f"{said}without BO_URL they still talk to {found.current_url}, which answers;"
            f" for this service: export BO_URL={url}\n"
        )
    if found.former_url:
        said += f"without BO_URL they now talk to this service; {found.former_url} does not answer\n"
    return said


@contextmanager
def _shared_metrics() -> Iterator[None]:
    """A folder in which the HTTP processes count their requests together."""
    with TemporaryDirectory(prefix="bo-metrics-") as folder:
        os.environ[SHARED_FOLDER] = folder
        yield


@contextmanager
def _shared_compute(settings: Settings) -> Iterator[None]:
    """One compute child for all HTTP processes, where it is embedded: it belongs to their parent."""
    if settings.compute != "embedded":
        yield
        return
    # they are all of this machine, so they share the key kept here
    master = master_key(settings)
    if master is not None:
        os.environ["BO_SECRET_KEY"] = master.value.decode()
    # the HTTP processes read the environment: the child is not theirs
    os.environ |= {"BO_COMPUTE": "external", "BO_BROKER_URL": ""}
    says = PostgresSignals(settings.resolved_database_url())
    child = ComputeChild(on_change=says.study_changed, environment=settings.compute_environment())
    hears = PostgresSignals(settings.resolved_database_url(), on_jobs=child.compute, on_gap=child.compute)
    says.start()
    hears.start()
    child.start()
    try:
        yield
    finally:
        child.stop()
        hears.stop()
        says.stop()


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
