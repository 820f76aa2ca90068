"""The one place where the parts are put together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import make_url

import bo_service
import migrations
from bo_service.domain.ids import ProjectId, StudyId
from bo_service.domain.records import OPERATORS_PROJECT
from bo_service.orchestrator.ports import UnitOfWork, Wakeup
from bo_service.settings import Settings
from bo_service.storage.archive import load, refuse_occupied, write_archive
from bo_service.storage.archive_file import ArchiveError, ArchiveReader, Head
from bo_service.storage.census import SqlSurvey
from bo_service.storage.engine import Transactions, open_engine, snapshot
from bo_service.storage.fail_points import FailingUnitOfWork, parsed
from bo_service.storage.failures import named, translated
from bo_service.storage.invariants import GRACE, violations
from bo_service.storage.signals import PostgresSignals
from bo_service.storage.store import SqlUnitOfWork


class SilentWakeup:
    """Nobody is told; polling finds the news."""

    def compute(self) -> None: ...

    def study_changed(self, study_id: StudyId) -> None: ...


@dataclass(frozen=True, slots=True)
class Services:
    """What a process needs to take part."""

    settings: Settings
    uow: UnitOfWork
    transactions: Transactions
    signals: PostgresSignals | None = None
    """Says to other processes what happened here, and hears what happened there; PostgreSQL only."""

    def close(self) -> None:
        """Give every connection back."""
        if self.signals is not None:
            self.signals.stop()
        self.transactions.engine.dispose()


def build_services(settings: Settings, *, wakeup: Wakeup | None = None) -> Services:
    """Open the database named in the settings; nothing is migrated, and nobody is told what happens."""
    url = settings.resolved_database_url()
    if url.startswith("sqlite"):
        settings.home.mkdir(parents=True, exist_ok=True)
    engine = open_engine(
        url, pool_size=settings.database_pool_size, statement_seconds=settings.database_statement_seconds
    )
    transactions = Transactions(engine)
    uow: UnitOfWork = SqlUnitOfWork(transactions, wakeup or SilentWakeup())
    if settings.fail_points:
        uow = FailingUnitOfWork(uow, parsed(settings.fail_points), settings.home / "fail_points")
    return Services(settings, uow, transactions)


def open_services(
    settings: Settings,
    *,
    on_jobs: Callable[[], None] | None = None,
    on_study: Callable[[StudyId], None] | None = None,
    on_gap: Callable[[], None] | None = None,
) -> Services:
    """The services of one process among several: on PostgreSQL they tell each other, on SQLite they poll."""
    url = settings.resolved_database_url()
    if url.startswith("sqlite"):
        return build_services(settings)
    signals = PostgresSignals(url, on_jobs=on_jobs, on_study=on_study, on_gap=on_gap)
    signals.start()
    return replace(build_services(settings, wakeup=signals), signals=signals)


def shown_url(url: str) -> str:
    """A URL without its password."""
    return make_url(url).render_as_string(hide_password=True)


def _alembic(settings: Settings) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("version_path_separator", "os")
    # a percent sign in a password is not an interpolation
    config.set_main_option("sqlalchemy.url", settings.resolved_database_url().replace("%", "%%"))
    return config


def upgrade_database(settings: Settings, revision: str = "head") -> None:
    """Bring the database to a revision, creating the file of an embedded one. Raises: Unavailable."""
    if settings.resolved_database_url().startswith("sqlite"):
        settings.home.mkdir(parents=True, exist_ok=True)
    with named(settings.resolved_database_url()):
        command.upgrade(_alembic(settings), revision)


def downgrade_database(settings: Settings, revision: str) -> None:
    """Take the database back to a revision; `base` empties it."""
    command.downgrade(_alembic(settings), revision)


def newest_revision(settings: Settings) -> str | None:
    """The newest revision this code has."""
    return ScriptDirectory.from_config(_alembic(settings)).get_current_head()


def known_revisions(settings: Settings) -> tuple[str, ...]:
    """Every revision this code has, newest first."""
    return tuple(
        script.revision for script in ScriptDirectory.from_config(_alembic(settings)).walk_revisions()
    )


def survey_of(services: Services) -> SqlSurvey:
    """The whole service in numbers."""
    return SqlSurvey(services.transactions, known_revisions(services.settings))


def database_revision(settings: Settings) -> tuple[str | None, str | None]:
    """The database's revision and the newest one this code has. Raises: Unavailable."""
    head = newest_revision(settings)
    url = settings.resolved_database_url()
    engine = open_engine(url, pool_size=1)
    try:
        with named(url), engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"version_table": migrations.VERSION_TABLE})
            return context.get_current_revision(), head
    finally:
        engine.dispose()


@dataclass(frozen=True, slots=True)
class ArchiveReport:
    """What an export or import moved."""

    revision: str
    """Of the tables in the archive."""

    version: str
    """Of the service that wrote it."""

    rows: dict[str, int]
    """By table."""

    seconds: float


def export_database(settings: Settings, stream: BinaryIO) -> ArchiveReport:
    """Write the whole database as it is at one instant; a service may be running on it.

    Raises: ArchiveError where there is no database at this version's revision, Unavailable.
    """
    started = time.monotonic()
    url = settings.resolved_database_url()
    file = make_url(url).database
    if url.startswith("sqlite") and not (file and Path(file).exists()):
        raise ArchiveError(f"there is no database at {shown_url(url)}")
    with translated():
        present, newest = database_revision(settings)
        if present is None or present != newest:
            raise ArchiveError(
                f"the database is at revision {present or 'none'}, this version at {newest}:"
                " run `bo db upgrade`, or export with the version that runs on it"
            )
        written_at = datetime.now(UTC).isoformat(timespec="seconds")
        head = Head(revision=present, version=bo_service.__version__, written_at=written_at)
        engine = open_engine(url, pool_size=1)
        try:
            with snapshot(engine) as connection:
                tallies = write_archive(connection, stream, head)
        finally:
            engine.dispose()
    rows = {name: tally.rows for name, tally in tallies.items()}
    return ArchiveReport(head.revision, head.version, rows, time.monotonic() - started)


def import_database(settings: Settings, stream: BinaryIO) -> ArchiveReport:
    """Fill an empty database from an archive, all or nothing; its tables are made here, and migrated afterwards.

    Raises: ArchiveError where the archive is damaged, too new or too large for the database, or the database has
    rows; Unavailable.
    """
    started = time.monotonic()
    archive = ArchiveReader(stream)
    if settings.resolved_database_url().startswith("sqlite"):
        settings.home.mkdir(parents=True, exist_ok=True)
    engine = open_engine(settings.resolved_database_url(), pool_size=1)
    try:
        with translated():
            with snapshot(engine) as connection:
                refuse_occupied(connection)
            _make_tables_for(archive.head, settings)
            with Transactions(engine)(read_only=False) as (connection, commit):
                ends = load(connection, archive)
                commit()
            upgrade_database(settings)
    finally:
        engine.dispose()
    rows = {name: tally.rows for name, tally in ends.items()}
    return ArchiveReport(archive.head.revision, archive.head.version, rows, time.monotonic() - started)


def _make_tables_for(head: Head, settings: Settings) -> None:
    """Bring an empty database to the revision an archive was written at. Raises: ArchiveError."""
    newest_first = known_revisions(settings)
    if head.revision not in newest_first:
        raise ArchiveError(
            f"the archive has tables of revision {head.revision}, which this version ({bo_service.__version__})"
            f" does not know: import it with version {head.version} of bo-service or a later one"
        )
    present, _ = database_revision(settings)
    if present is not None and present not in newest_first:
        raise ArchiveError(f"the database is at revision {present}, of a later version than this one")
    if present is not None and newest_first.index(present) < newest_first.index(head.revision):
        raise ArchiveError(
            f"the archive has tables of revision {head.revision}, the database of {present}:"
            " import into a database without tables, which are made and migrated here"
        )
    upgrade_database(settings, head.revision)


def broken_invariants(services: Services, *, grace: timedelta = GRACE) -> list[str]:
    """Every rule the data break, in words; what is overdue for less than `grace` breaks none. See `violations`."""
    # an engine of its own: a statement over a large database may take longer than the service's own may
    url = services.settings.resolved_database_url()
    engine = open_engine(url, pool_size=1)
    try:
        with named(url), snapshot(engine) as connection:
            return violations(connection, now=services.transactions.now(connection), grace=grace)
    finally:
        engine.dispose()


def ensure_default_project(uow: UnitOfWork) -> ProjectId:
    """The project of keyless services and of the local user."""
    with uow() as store:
        project_id = store.records.ensure_project(OPERATORS_PROJECT, now=store.now())
        store.commit()
    return project_id
