"""Runs migrations on the database named in the configuration."""

from __future__ import annotations

from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from bo_service.storage.engine import open_engine
from bo_service.storage.tables import Table
from bo_service.storage.upgrade_lock import alone
from migrations import VERSION_TABLE


def run() -> None:
    """One process at a time: the revision is read under the lock, so whoever waited finds nothing left to do."""
    url = context.config.get_main_option("sqlalchemy.url")
    assert url is not None
    with alone(url):
        engine = open_engine(url, pool_size=1)
        with engine.connect() as connection:
            migrate(connection)
        engine.dispose()


def migrate(connection: Connection) -> None:
    """Each migration in a transaction of its own; SQLite tables are rebuilt where it cannot alter them."""
    if connection.dialect.name == "sqlite":
        # a table that is rebuilt is dropped, and with its rows would go all that refer to them
        connection.connection.driver_connection.execute("PRAGMA foreign_keys=OFF")
    context.configure(
        connection=connection,
        target_metadata=Table.metadata,
        version_table=VERSION_TABLE,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
        transaction_per_migration=True,
        on_version_apply=refuse_astray,
    )
    with context.begin_transaction():
        context.run_migrations()


def refuse_astray(*, ctx: MigrationContext, **_: Any) -> None:
    """Roll a migration of SQLite back that leaves rows without those they refer to: nobody else looked meanwhile."""
    assert ctx.connection is not None
    if ctx.dialect.name != "sqlite":
        return
    astray = ctx.connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if astray:
        table, row, referred, _ = astray[0]
        raise RuntimeError(
            f"{len(astray)} rows lost what they refer to; the first: {table}.{row} in {referred}"
        )


run()
