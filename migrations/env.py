"""Runs migrations on the database named in the configuration."""

from __future__ import annotations

from alembic import context

from bo_service.storage.engine import open_engine
from bo_service.storage.tables import Table
from migrations import VERSION_TABLE


def run() -> None:
    """Each migration in a transaction of its own; SQLite tables are rebuilt where it cannot alter them."""
    url = context.config.get_main_option("sqlalchemy.url")
    assert url is not None
    engine = open_engine(url, pool_size=1)
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Table.metadata,
            version_table=VERSION_TABLE,
            render_as_batch=connection.dialect.name == "sqlite",
            compare_type=True,
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
