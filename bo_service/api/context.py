"""What a request handler may use: the store, the bell, the caller."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Protocol, TypeVar

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool

from bo_service.domain.errors import Forbidden, Unauthorized
from bo_service.domain.ids import ProjectId, StudyId
from bo_service.domain.records import ApiKey, Scope
from bo_service.orchestrator.ports import UnitOfWork

T = TypeVar("T")

KEY_MEMORY_SECONDS: Final = 5.0
"""A revoked key may work this much longer in other processes."""


class Bell:
    """Wakes the coroutines that wait for a study; may be rung from any thread."""

    def __init__(self) -> None:
        self._waiting: dict[StudyId, set[asyncio.Event]] = defaultdict(set)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def wait(self, study_id: StudyId, *, seconds: float) -> bool:
        """Return when the study changes or the time is over; True where it changed."""
        self._loop = asyncio.get_running_loop()
        rung = asyncio.Event()
        with self._lock:
            self._waiting[study_id].add(rung)
        try:
            async with asyncio.timeout(seconds):
                await rung.wait()
        except TimeoutError:
            return False
        finally:
            with self._lock:
                self._waiting[study_id].discard(rung)
                if not self._waiting[study_id]:
                    del self._waiting[study_id]
        return True

    def ring(self, study_id: StudyId) -> None:
        """Wake everyone who waits for this study."""
        with self._lock:
            waiting = list(self._waiting.get(study_id, ()))
        self._wake(waiting)

    def ring_all(self) -> None:
        """Wake everyone: nobody knows what was missed."""
        with self._lock:
            waiting = [rung for of_study in self._waiting.values() for rung in of_study]
        self._wake(waiting)

    def _wake(self, waiting: list[asyncio.Event]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            for rung in waiting:
                self._loop.call_soon_threadsafe(rung.set)


class ComputeStatus(Protocol):
    """How the compute side is doing, as far as this process can see."""

    @property
    def is_alive(self) -> bool: ...
    @property
    def n_restarts(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a project and what its key may do."""

    project_id: ProjectId
    project: str
    scope: Scope
    key_name: str


@dataclass(frozen=True, slots=True)
class KeyMemory:
    """Callers seen in the last seconds, by the hash of their key."""

    _callers: dict[str, tuple[float, Caller]] = field(default_factory=dict)

    def get(self, key_hash: str) -> Caller | None:
        seen = self._callers.get(key_hash)
        return seen[1] if seen and time.monotonic() - seen[0] < KEY_MEMORY_SECONDS else None

    def put(self, key_hash: str, caller: Caller) -> None:
        if len(self._callers) > 10_000:
            self._callers.clear()
        self._callers[key_hash] = (time.monotonic(), caller)

    def clear(self) -> None:
        self._callers.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """Everything the routes share."""

    uow: UnitOfWork
    bell: Bell
    hash_key: Callable[[str], str]
    create_key: Callable[..., tuple[ApiKey, str]]
    anonymous: Caller | None
    """Who a request without a key is, where keys are off."""
    is_writer_idle: Callable[[], bool]
    """Whether a short transaction would run at once, so that it need not be sent to a thread."""
    compute: ComputeStatus | None
    max_wait_seconds: float
    max_body_bytes: int
    memory: KeyMemory = field(default_factory=KeyMemory)


def context_of(request: Request) -> ApiContext:
    """The context the application was built with."""
    context: ApiContext = request.app.state.context
    return context


async def _context(request: Request) -> ApiContext:
    # a coroutine, because FastAPI would send a plain function through the thread pool
    return context_of(request)


async def promptly(act: Callable[[], T], *, context: ApiContext) -> T:
    """Do something short: at once where nothing else writes, else in the thread pool.

    On SQLite a transaction takes about a millisecond; sending it to a thread costs as much again, and threads
    that hand the interpreter to and fro at every statement cost more (docs/adr/0002).
    """
    return act() if context.is_writer_idle() else await run_in_threadpool(act)


async def identify(request: Request) -> Caller:
    """The caller of a request. Raises: Unauthorized."""
    context = context_of(request)
    header = request.headers.get("authorization", "")
    scheme, _, key = header.partition(" ")
    if not key:
        if context.anonymous is not None:
            return context.anonymous
        raise Unauthorized(
            "no API key", hint="send the header Authorization: Bearer <key>; `bo up` prints one"
        )
    if scheme.lower() != "bearer":
        raise Unauthorized(f"unknown scheme {scheme!r}", hint="use Authorization: Bearer <key>")
    key_hash = context.hash_key(key.strip())
    caller = context.memory.get(key_hash)
    if caller is None:
        caller = await run_in_threadpool(_look_up, key_hash, context)
        context.memory.put(key_hash, caller)
    return caller


def _look_up(key_hash: str, context: ApiContext) -> Caller:
    with context.uow(read_only=True) as store:
        found = store.records.key_by_hash(key_hash)
    if found is None or found.revoked_at is not None:
        raise Unauthorized("the API key is unknown or revoked", hint="ask an admin for a new one")
    return Caller(found.project_id, found.project, found.scope, found.name)


def _needs(scope: Scope) -> Callable[[Request], Coroutine[Any, Any, Caller]]:
    async def check(request: Request) -> Caller:
        caller = await identify(request)
        if not caller.scope.includes(scope):
            raise Forbidden(
                f"a key of scope {caller.scope.value} may not do this",
                hint=f"use a key of scope {scope.value}",
            )
        return caller

    return check


Context = Annotated[ApiContext, Depends(_context)]
Viewer = Annotated[Caller, Depends(_needs(Scope.VIEWER))]
Worker = Annotated[Caller, Depends(_needs(Scope.WORKER))]
Editor = Annotated[Caller, Depends(_needs(Scope.EDITOR))]
Admin = Annotated[Caller, Depends(_needs(Scope.ADMIN))]
