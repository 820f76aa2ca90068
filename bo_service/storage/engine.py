"""Engines and transactions: SQLite in WAL mode with one writer at a time, PostgreSQL with row locks."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.engine import URL
from sqlalchemy.pool import QueuePool

from bo_service.domain.census import Connections

SQLITE_BUSY_SECONDS: Final = 30
CLOCK_SECONDS: Final = 5.0
"""The server is asked for the time this often."""


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _compact_for_jsonb(value: Any) -> str:
    """JSON that comes back from JSONB as it was: 1e23 would come back as the integer 10**23, which is another number.

    JSONB keeps the zero behind the point, so large floats are spelled out with one.
    """
    text = _compact(value)
    if "e+" not in text:
        return text
    # drawn anew for each value and known to stand nowhere in it: no text of a user's can pass for it
    mark = secrets.token_hex(16)
    while mark in text:
        mark = secrets.token_hex(16)
    return _compact(_spelled_out(value, mark)).replace(f'"{mark}', "").replace(f'{mark}"', "")


def _spelled_out(value: Any, mark: str) -> Any:
    if isinstance(value, float) and "e+" in repr(value):
        return f"{mark}{Decimal(repr(value)):f}.0{mark}"
    if isinstance(value, Mapping):
        return {name: _spelled_out(inner, mark) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled_out(inner, mark) for inner in value]
    return value


def open_engine(url: str, *, pool_size: int = 20, statement_seconds: float | None = None) -> Engine:
    """An engine for a `sqlite:///path` or `postgresql+psycopg://...` URL; statements may be limited on PostgreSQL."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engine(parsed, pool_size)
    options = "" if statement_seconds is None else f"-c statement_timeout={round(1000 * statement_seconds)}"
    return create_engine(
        parsed,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=30.0 if statement_seconds is None else statement_seconds,
        pool_pre_ping=False,  # a ping costs every request a round trip; after a restart a few are sent again
        json_serializer=_compact_for_jsonb,
        hide_parameters=True,  # a failed statement is logged, and its values may be leases
        connect_args={"options": options, "application_name": "bo-service"},
    )


def _sqlite_engine(url: URL, pool_size: int) -> Engine:
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=-1,
        json_serializer=_compact,
        hide_parameters=True,
        connect_args={"timeout": SQLITE_BUSY_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        # the driver must not open transactions of its own: `begin` below does
        connection.isolation_level = None
        for pragma in (
            "journal_mode=WAL",
            "synchronous=NORMAL",  # a commit survives the death of any process; see docs/adr/0003
            "foreign_keys=ON",
            "wal_autocheckpoint=8000",  # a checkpoint waits for the disk, and 32 MB between two is little
            "temp_store=MEMORY",
            "cache_size=-16000",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get("bo_read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """A connection that sees the database as it is now, whatever others commit meanwhile."""
    with engine.connect() as raw:
        if engine.dialect.name == "sqlite":
            connection = raw.execution_options(bo_read_only=True)
        else:
            connection = raw.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with connection.begin():
            yield connection


class Transactions:
    """Opens transactions on one engine.

    On SQLite the writers of this process wait for each other on a lock, in order, instead of polling the
    database's own; other processes are kept out by BEGIN IMMEDIATE.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.is_sqlite = engine.dialect.name == "sqlite"
        self._writer = threading.Lock()
        self._clock_offset = timedelta(0)
        self._clock_due = 0.0

    def now(self, connection: Connection) -> datetime:
        """The database's clock, UTC: this machine's own, corrected by what the server said within the last seconds."""
        if self.is_sqlite:
            return datetime.now(UTC)
        if time.monotonic() >= self._clock_due:
            before = datetime.now(UTC)
            there = connection.execute(select(func.clock_timestamp())).scalar_one().astimezone(UTC)
            here = datetime.now(UTC)
            self._clock_offset = there - (before + (here - before) / 2)
            self._clock_due = time.monotonic() + CLOCK_SECONDS
        return datetime.now(UTC) + self._clock_offset

    def connections(self) -> Connections | None:
        """The pool as it is now; None on SQLite, where connections cost nothing."""
        pool = self.engine.pool
        if self.is_sqlite or not isinstance(pool, QueuePool):
            return None
        # as many again for a short while: see open_engine
        return Connections(n_in_use=pool.checkedout(), n_idle=pool.checkedin(), limit=2 * pool.size())

    def is_idle(self) -> bool:
        """Whether a writer of this process would have its turn at once; never promised for PostgreSQL."""
        return self.is_sqlite and not self._writer.locked()

    @contextmanager
    def __call__(self, *, read_only: bool) -> Iterator[tuple[Connection, Callable[[], None]]]:
        """A connection inside a transaction, and the function that commits it."""
        turn: AbstractContextManager[Any] = nullcontext()
        if self.is_sqlite and not read_only:
            turn = self._writer
        with turn, self.engine.connect() as raw:
            connection = raw.execution_options(bo_read_only=read_only)
            transaction = connection.begin()
            try:
                yield connection, transaction.commit
            finally:
                if transaction.is_active:
                    transaction.rollback()
