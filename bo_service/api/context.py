"""What a request handler may use: the store, the bell, the caller."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Protocol, TypeVar

from anyio import CapacityLimiter
from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool

from bo_service.api.audit import AuditedUnitOfWork, Deed, deed_of
from bo_service.api.rates import Rates
from bo_service.api.turns import Lookouts, Turns
from bo_service.domain.census import Census, Connections, Totals
from bo_service.domain.errors import Forbidden, RateLimited, Unauthorized
from bo_service.domain.ids import ProjectId, StudyId
from bo_service.domain.job import ServiceProcess
from bo_service.domain.records import OPERATORS_PROJECT, Scope
from bo_service.domain.signing import MasterKey
from bo_service.orchestrator.manage_keys import hash_key
from bo_service.orchestrator.ports import UnitOfWork
from bo_service.telemetry import bind

T = TypeVar("T")

KEY_MEMORY_SECONDS: Final = 5.0
"""A revoked or expired key may work this much longer in other processes."""

N_LOOK_UPS: Final = 4
"""So many names of receivers are looked up at the same time."""

MAX_KEYS: Final = 10_000
"""So many keys a process remembers."""

STRANGERS_PER_SECOND: Final = 100.0
"""So many unknown keys an address may try: each costs a look into the database."""


class Bell:
    """Wakes the coroutines that wait for a study; may be rung from any thread."""

    def __init__(self) -> None:
        self._waiting: dict[StudyId, set[asyncio.Event]] = defaultdict(set)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_closed = False
        """Whether the process is about to end, so that whoever would wait should answer instead."""

    async def wait(self, study_id: StudyId, *, seconds: float) -> bool:
        """Return when the study changes or the time is over; True where it changed. At once when closed."""
        if self.is_closed:
            return False
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

    def close(self) -> None:
        """End all waiting, now and from now on; called on the event loop, where nobody is about to wait."""
        self.is_closed = True
        self.ring_all()

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


class Survey(Protocol):
    """The whole service in numbers."""

    def census(self) -> Census: ...
    def totals(self) -> Totals: ...
    def connections(self) -> Connections | None: ...
    def processes(self) -> Sequence[ServiceProcess]:
        """Relays and compute workers heard of lately."""

    def revision(self) -> str | None:
        """The database's revision of the tables."""

    @property
    def revisions(self) -> Sequence[str]:
        """Those this version has, newest first."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a project and what its key may do."""

    project_id: ProjectId
    project: str
    scope: Scope
    key_name: str
    key_id: str | None = None
    """None where keys are off."""

    @property
    def is_operator(self) -> bool:
        """Whether its project is the one that runs the service and may see it as a whole."""
        return self.project == OPERATORS_PROJECT


@dataclass(frozen=True, slots=True)
class KeyMemory:
    """Callers seen in the last seconds, and the keys that were valid when they were last looked up, by their hash."""

    _callers: dict[str, tuple[float, Caller]] = field(default_factory=dict)
    _known: dict[str, None] = field(default_factory=dict)
    """Used from the event loop alone."""

    def get(self, key_hash: str) -> Caller | None:
        seen = self._callers.get(key_hash)
        return seen[1] if seen and time.monotonic() - seen[0] < KEY_MEMORY_SECONDS else None

    def put(self, key_hash: str, caller: Caller) -> None:
        if len(self._callers) > MAX_KEYS:
            self._callers.clear()
        self._callers[key_hash] = (time.monotonic(), caller)
        if len(self._known) > MAX_KEYS and key_hash not in self._known:
            del self._known[next(iter(self._known))]
        self._known[key_hash] = None

    def is_known(self, key_hash: str) -> bool:
        return key_hash in self._known

    def forget(self, key_hash: str) -> None:
        """The key is valid no more."""
        self._known.pop(key_hash, None)

    def clear(self) -> None:
        """Have every key looked up anew."""
        self._callers.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """Everything the routes share."""

    uow: UnitOfWork
    bell: Bell
    survey: Survey
    secret_key: Callable[[], MasterKey | None]
    """Finds the key from which the secrets of webhooks follow."""
    check_receiver: Callable[[str], object]
    """Raises Invalid where a webhook may not call this URL; asks the network, so not inside a transaction."""
    anonymous: Caller | None
    """Who a request without a key is, where keys are off."""
    is_writer_idle: Callable[[], bool]
    """Whether a short transaction would run at once, so that it need not be sent to a thread."""
    compute: ComputeStatus | None
    has_broker: bool
    """Whether messages can be sent to a fleet."""
    max_wait_seconds: float
    max_body_bytes: int
    rates: Rates = field(default_factory=lambda: Rates(0.0))
    strangers: Rates = field(default_factory=lambda: Rates(STRANGERS_PER_SECOND))
    """Look-ups of unknown keys, by address."""
    look_ups: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(N_LOOK_UPS))
    """Threads that look names up, beside those of the requests."""
    cors_origins: tuple[str, ...] = ()
    memory: KeyMemory = field(default_factory=KeyMemory)
    turns: Turns = field(default_factory=Turns)
    streams: Counter[str] = field(default_factory=Counter)
    """Event streams that are read now, by key."""
    lookouts: Lookouts = field(default_factory=Lookouts)


def context_of(request: Request) -> ApiContext:
    """The context the application was built with."""
    context: ApiContext = request.app.state.context
    return context


async def _context(request: Request) -> ApiContext:
    # a coroutine, because FastAPI would send a plain function through the thread pool
    context = context_of(request)
    deed = deed_of(request)
    return context if deed is None else replace(context, uow=AuditedUnitOfWork(context.uow, deed))


async def promptly(act: Callable[[], T], *, context: ApiContext, turn: str) -> T:
    """Do something short: at once where nothing else writes, else in the thread pool when `turn` comes.

    On SQLite a transaction takes about a millisecond; sending it to a thread costs as much again, and threads
    that hand the interpreter to and fro at every statement cost more (docs/adr/0002).
    """
    if context.is_writer_idle():
        return act()
    async with context.turns.of(turn):
        return await run_in_threadpool(act)


async def identify(request: Request) -> Caller:
    """The caller of a request. Raises: Unauthorized, RateLimited."""
    context = context_of(request)
    bind(**request.path_params)
    header = request.headers.get("authorization", "")
    scheme, _, key = header.partition(" ")
    if not key:
        if context.anonymous is not None:
            return context.anonymous
        raise Unauthorized(
            "no API key", hint="send the header Authorization: Bearer <key>; `bo up` prints one"
        )
    if scheme.lower() != "bearer":
        # not repeated: a key sent without its scheme stands there
        raise Unauthorized("unknown scheme", hint="use Authorization: Bearer <key>")
    key_hash = hash_key(key.strip())
    caller = context.memory.get(key_hash)
    if caller is None:
        caller = await _recognize(key_hash, address_of(request), context)
    _take(context.rates, caller.key_id or "")
    return caller


async def _recognize(key_hash: str, address: str, context: ApiContext) -> Caller:
    """Look a key up, at the expense of its address where it is no valid one.

    A key that was valid is looked up in any case: many callers may have one address, behind a proxy, and a stranger
    among them. Raises: Unauthorized, RateLimited.
    """
    is_known = context.memory.is_known(key_hash)
    if not is_known:
        _take(context.strangers, address)
    try:
        caller = await run_in_threadpool(_look_up, key_hash, context)
    except Unauthorized:
        context.memory.forget(key_hash)
        raise
    if not is_known:
        context.strangers.give_back(address)
    context.memory.put(key_hash, caller)
    return caller


def address_of(request: Request) -> str:
    """Where a request comes from: who connected, or whom a trusted proxy names (BO_TRUSTED_PROXIES)."""
    return request.client.host if request.client else "unknown"


def _take(rates: Rates, who: str) -> None:
    wait = rates.take(who)
    if wait > 0:
        raise RateLimited(
            "too many requests",
            hint="slow down; BO_RATE_LIMIT sets how many a second a key may make",
            wait=wait,
        )


def _look_up(key_hash: str, context: ApiContext) -> Caller:
    with context.uow(read_only=True) as store:
        found = store.records.key_by_hash(key_hash)
        is_valid = found is not None and found.is_valid(store.now())
    if found is None or not is_valid:
        raise Unauthorized("the API key is unknown, expired or revoked", hint="ask an admin for a new one")
    return Caller(found.project_id, found.project, found.scope, found.name, found.id)


def _needs(scope: Scope) -> Callable[[Request], Coroutine[Any, Any, Caller]]:
    async def check(request: Request) -> Caller:
        caller = await identify(request)
        if not caller.scope.includes(scope):
            raise Forbidden(
                f"a key of scope {caller.scope.value} may not do this",
                hint=f"use a key of scope {scope.value}",
            )
        # what workers do is told by the events of their study
        if request.method != "GET" and scope in (Scope.EDITOR, Scope.ADMIN):
            request.state.deed = _deed(request, caller)
        return caller

    return check


def _deed(request: Request, caller: Caller) -> Deed:
    route = getattr(request.scope.get("route"), "path", request.url.path)
    deed = Deed(
        project_id=caller.project_id,
        key_id=caller.key_id,
        key_name=caller.key_name,
        action=f"{request.method} {route}",
        request_id=getattr(request.state, "request_id", ""),
        address=address_of(request),
    )
    deed.is_about(request.path_params)
    return deed


async def _operator(request: Request) -> Caller:
    caller = await identify(request)
    if not caller.is_operator:
        raise Forbidden(
            f"a key of project {caller.project!r} may not see the whole service",
            hint=f"use a key of project {OPERATORS_PROJECT!r}",
        )
    return caller


Context = Annotated[ApiContext, Depends(_context)]
Viewer = Annotated[Caller, Depends(_needs(Scope.VIEWER))]
Worker = Annotated[Caller, Depends(_needs(Scope.WORKER))]
Editor = Annotated[Caller, Depends(_needs(Scope.EDITOR))]
Admin = Annotated[Caller, Depends(_needs(Scope.ADMIN))]
Operator = Annotated[Caller, Depends(_operator)]
"""Any key of the project that runs the service."""
