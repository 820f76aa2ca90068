"""Every migration, on both databases, from every released revision."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import func, inspect, select, table

import migrations
from bo_service import bootstrap
from bo_service.bootstrap import (
    broken_invariants,
    build_services,
    database_revision,
    downgrade_database,
    ensure_default_project,
    upgrade_database,
)
from bo_service.domain.ids import JobId, StudyId, TrialId, new_id
from bo_service.domain.job import Queue
from bo_service.domain.spec import StudySpec
from bo_service.settings import Settings
from bo_service.storage.tables import Table
from tests.migrations.old_rows import CLOSED, JOB, NOW, RUNNING, insert_old_rows
from tests.steps import claim, complete, new_study, run_jobs

REVISIONS = sorted(path.name[:4] for path in Path(migrations.__path__[0], "versions").glob("[0-9]*.py"))


def revisions(settings: Settings) -> list[str]:
    """Oldest first."""
    script = ScriptDirectory.from_config(bootstrap._alembic(settings))
    return [revision.revision for revision in script.walk_revisions()][::-1]


def tables(settings: Settings) -> set[str]:
    services = build_services(settings)
    found = set(inspect(services.transactions.engine).get_table_names())
    services.transactions.engine.dispose()
    return found


def test_up_down_and_up_again(empty_database: Settings) -> None:
    upgrade_database(empty_database)
    assert set(Table.metadata.tables) <= tables(empty_database)
    assert migrations.VERSION_TABLE in tables(empty_database)
    downgrade_database(empty_database, "base")
    assert tables(empty_database) <= {migrations.VERSION_TABLE, "sqlite_sequence"}
    upgrade_database(empty_database)
    present, newest = database_revision(empty_database)
    assert present == newest


def test_the_migrated_tables_are_the_declared_ones(empty_database: Settings) -> None:
    upgrade_database(empty_database)
    services = build_services(empty_database)
    with services.transactions.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": migrations.VERSION_TABLE, "compare_type": True}
        )
        differences = compare_metadata(context, Table.metadata)
    services.transactions.engine.dispose()
    assert differences == []


def counted(settings: Settings) -> dict[str, int]:
    """Rows of every table."""
    services = build_services(settings)
    with services.transactions.engine.connect() as connection:
        names = inspect(connection).get_table_names()
        found = {
            n: connection.execute(select(func.count()).select_from(table(n))).scalar_one() for n in names
        }
    services.close()
    return found


def test_each_step_down_keeps_the_rows_of_the_tables_that_stay(empty_database: Settings, make_spec) -> None:
    """Rebuilding a table on SQLite drops it: what refers to its rows must not go with them."""
    upgrade_database(empty_database)
    services = build_services(empty_database)
    project = ensure_default_project(services.uow)
    study = new_study(services, project, make_spec)
    run_jobs(services)
    (trial,) = claim(services, study)
    complete(services, trial, project, 0.5)
    services.close()
    before = counted(empty_database)
    assert before["trials"] == before["observations"] == 1
    for revision in revisions(empty_database)[-2::-1]:
        downgrade_database(empty_database, revision)
        after = counted(empty_database)
        assert {name: after[name] for name in after} == {name: before.get(name, 0) for name in after}
    upgrade_database(empty_database)
    services = build_services(empty_database)
    with services.uow(read_only=True) as store:
        assert store.trials.get(trial.id).measurements["loss"].value == 0.5
    assert broken_invariants(services) == []
    services.close()


def test_a_migration_that_leaves_rows_astray_is_rolled_back(tmp_path: Path, make_spec) -> None:
    settings = Settings(home=tmp_path)
    upgrade_database(settings)
    services = build_services(settings)
    study = new_study(services, ensure_default_project(services.uow), make_spec)
    services.close()
    with sqlite3.connect(settings.home / "bo.db") as connection:
        connection.execute("DELETE FROM studies WHERE id = ?", (study.id,))
    with pytest.raises(RuntimeError, match="rows lost what they refer to"):
        downgrade_database(settings, revisions(settings)[-2])
    present, newest = database_revision(settings)
    assert present == newest


@pytest.mark.parametrize("revision", REVISIONS)
def test_rows_of_every_revision_survive_the_way_to_the_newest(
    empty_database: Settings, make_spec, revision: str
) -> None:
    """The tables as they were then, filled then; the newest version reads them and goes on with the work."""
    upgrade_database(empty_database, revision)
    services = build_services(empty_database)
    spec, study_id = make_spec(), new_id()
    filled = insert_old_rows(services.transactions.engine, spec, study_id=study_id)
    services.close()
    upgrade_database(empty_database)
    after = counted(empty_database)
    # what a process says of itself lives half a minute
    assert {n: after[n] for n in filled if n in after} == {n: filled[n] for n in filled if n in after}
    assert set(filled) - set(after) <= {"compute_workers"}
    services = build_services(empty_database)
    with services.uow(read_only=True) as store:
        study = store.studies.get(StudyId(study_id))
        assert study.spec == StudySpec.model_validate(spec)
        assert (study.best_value, study.cost, study.n_trials) == (0.5, 2.5, 2)
        assert store.trials.get(TrialId(CLOSED)).measurements["loss"].value == 0.5
        seen = {o.step: (o.attempt, o.value) for o in store.trials.observations(TrialId(CLOSED))}
        assert seen == {3: (0, 0.75), None: (0, 0.5)}
        job = store.jobs.get(JobId(JOB), lock=False)
        assert (job.ready_at, job.queue, job.trace) == (NOW, Queue.CPU, None)
        key = store.records.key_by_hash("h" * 64)
        assert key is not None
        assert (key.name, key.expires_at, key.is_valid(store.now())) == ("old", None, True)
    assert broken_invariants(services, grace=timedelta(hours=1)) == []
    assert run_jobs(services) == 1
    claim(services, study, "new")
    with services.uow(read_only=True) as store:
        held = store.trials.get(TrialId(RUNNING))
    complete(services, held, study.project_id, 0.25)
    with services.uow(read_only=True) as store:
        assert store.studies.get(study.id).best_trial_id == RUNNING
    assert broken_invariants(services, grace=timedelta(hours=1)) == []
    services.close()


def test_every_table_of_the_newest_revision_gets_old_rows(empty_database: Settings, make_spec) -> None:
    """A new table wants rows in old_rows.py, or a reason here."""
    upgrade_database(empty_database)
    services = build_services(empty_database)
    filled = insert_old_rows(services.transactions.engine, make_spec(), study_id=new_id())
    services.close()
    # without data moves so far
    assert set(Table.metadata.tables) - set(filled) == {"fits", "llm_calls", "pushes"}
