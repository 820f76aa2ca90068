"""One process at a time changes the tables; the others wait for their turn and find the work done."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import func, make_url, select

from bo_service.storage.engine import open_engine

UPGRADE_KEY: Final = 0x626F5F7570
"""Of PostgreSQL's advisory lock ("bo_up"); each database has locks of its own."""


@contextmanager
def alone(url: str) -> Iterator[None]:
    """Wait until no other process migrates this database, and keep others out meanwhile.

    On PostgreSQL the lock hangs on a connection of its own, on SQLite on a file beside the database: it ends with the
    process, however that ends, and no migration's transaction carries it.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        with _alone_on_postgres(url):
            yield
        return
    if parsed.database in (None, "", ":memory:"):
        yield
        return
    # taken before the first connection: switching a new file to WAL is work for one process, too
    with Path(f"{parsed.database}.upgrade-lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _alone_on_postgres(url: str) -> Iterator[None]:
    engine = open_engine(url, pool_size=1)
    try:
        with engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(select(func.pg_advisory_lock(UPGRADE_KEY)))
            yield
    finally:
        # the connection ends, and the lock with it
        engine.dispose()
