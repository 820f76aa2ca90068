"""`bo export` and `bo import`: a database moved through a file is the same one, on either kind of server."""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, insert, select, table

from bo_service.bootstrap import (
    Services,
    broken_invariants,
    build_services,
    ensure_default_project,
    export_database,
    import_database,
    upgrade_database,
)
from bo_service.domain.ids import JobId, LeaseToken, ProjectId
from bo_service.domain.job import JobState
from bo_service.domain.proposal import Measurement
from bo_service.domain.records import Scope, StoredReply
from bo_service.domain.signing import MasterKey
from bo_service.domain.study import Study
from bo_service.domain.trial import AttemptExit
from bo_service.domain.webhook import NoticeKind
from bo_service.orchestrator.branch_study import branch_study
from bo_service.orchestrator.end_attempt import fail_trial
from bo_service.orchestrator.manage_keys import create_key, hash_key
from bo_service.orchestrator.manage_webhooks import NewWebhook, create_webhook
from bo_service.orchestrator.push_trials import push_trials
from bo_service.orchestrator.reap import claim_job, reap_job
from bo_service.orchestrator.renew_lease import renew_lease
from bo_service.settings import Settings
from bo_service.storage.archive import archived, kind_of
from bo_service.storage.archive_file import KINDS, ArchiveError, Fingerprint
from bo_service.storage.tables import EventRow, FitRow, StudyRow, Table, table_of
from tests.conftest import _fresh_postgres
from tests.steps import advance_all, claim, complete, end_pause, new_study, run_jobs

PAIRS = [
    pytest.param(("sqlite", "sqlite"), id="sqlite->sqlite", marks=pytest.mark.slow),
    pytest.param(("sqlite", "postgres"), id="sqlite->postgres", marks=pytest.mark.postgres),
    pytest.param(("postgres", "sqlite"), id="postgres->sqlite", marks=pytest.mark.postgres),
    pytest.param(
        ("postgres", "postgres"), id="postgres->postgres", marks=[pytest.mark.postgres, pytest.mark.slow]
    ),
]


def database(kind: str, folder: Path, request: pytest.FixtureRequest) -> Settings:
    """Settings of a new database without tables."""
    if kind == "sqlite":
        return Settings(home=folder)
    return Settings(home=folder, database_url=_fresh_postgres(request.getfixturevalue("postgres_url")))


@pytest.fixture(params=PAIRS)
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Settings, Settings]:
    """The old database and the new one, neither with tables."""
    old, new = request.param
    return database(old, tmp_path / "old", request), database(new, tmp_path / "new", request)


@pytest.fixture
def rich(ends: tuple[Settings, Settings], make_spec) -> Iterator[tuple[Services, Study, ProjectId, str]]:
    """A migrated old database with a row of every kind there is: services, a study in it, its project, an API key."""
    upgrade_database(ends[0])
    services = build_services(ends[0])
    project = ensure_default_project(services.uow)
    _, key = create_key("worker", Scope.WORKER, project="default", uow=services.uow)
    mixture = {
        "type": "mixture",
        "name": "data",
        "components": [{"name": "web"}, {"name": "code", "high": 0.5}],
    }
    choice = {"type": "categorical", "name": "script", "choices": ["ä", "漢字 🜲", '"', "\\"]}
    spec = {
        "parameters": [
            {"type": "float", "name": "x", "low": 1e-5, "high": 1, "scale": "log"},
            mixture,
            choice,
        ]
    }
    study = new_study(services, project, make_spec, surrogate={"name": "gp"}, initial={"size": 3}, **spec)
    _listen_and_push(services, project, make_spec)
    advance_all(services)
    for i in range(4):
        (trial,) = claim(services, study, f"w{i}")
        with services.uow() as store:
            for step in range(3):
                store.trials.observe(
                    trial, step, {"loss": Measurement(value=0.1 * step, sem=1e-17)}, store.now()
                )
            store.commit()
        complete(services, trial, project, 1 / (3 + i))
        advance_all(services)
    (failed,) = claim(services, study, "fails")
    how: Any = AttemptExit.ERROR
    fail_trial(
        failed.id, "no gpu", how=how, retry=True, lease=failed.lease, project_id=project, uow=services.uow
    )
    (again,) = claim(services, study, "tries again")
    assert again.id == failed.id
    with services.uow() as store:
        store.trials.observe(again, 1, {"loss": Measurement(value=5.0)}, store.now())
        reply = StoredReply(request_hash="h", status=201, body='{"é": 1}')
        store.records.remember_reply(project, "a key", reply, now=store.now())
        store.commit()
    branch_study(study.id, f"{study.spec.name}-b", {}, project_id=project, uow=services.uow)
    _name_a_later_parent(services, study)
    assert claim_job(LeaseToken("of an old worker"), lease_seconds=60, uow=services.uow) is not None
    yield services, study, project, key
    services.close()


def _listen_and_push(services: Services, project: ProjectId, make_spec) -> None:
    """A webhook that hears of the next best trial, and a study that announces its trials to a fleet."""
    wanted = NewWebhook(url="https://example.org/hook", kinds=(NoticeKind.NEW_BEST,))
    create_webhook(wanted, key=lambda: MasterKey(b"k" * 32), project_id=project, uow=services.uow)
    pushed = new_study(
        services,
        project,
        make_spec,
        name="pushed",
        push={"objective": "a:b", "slots": 2, "queue": "objectives"},
    )
    advance_all(services)
    n_sent = push_trials(
        pushed.id, send=lambda *_: None, resend_after=timedelta(seconds=15), asks=True, uow=services.uow
    )
    assert n_sent == 2


def _name_a_later_parent(services: Services, study: Study) -> None:
    """A study whose parent comes after it, which no order of insertion satisfies by itself."""
    studies = table_of(StudyRow)
    with services.transactions(read_only=False) as (connection, commit):
        last = connection.execute(select(studies.c.id).order_by(studies.c.id.desc()).limit(1)).scalar_one()
        assert last != study.id
        connection.execute(studies.update().where(studies.c.id == study.id).values(parent_study_id=last))
        commit()


def moved(old: Settings, new: Settings) -> bytes:
    """Export one and import into the other; returns the archive."""
    archive = io.BytesIO()
    report = export_database(old, archive)
    assert import_database(new, io.BytesIO(archive.getvalue())).rows == report.rows
    return archive.getvalue()


def contents(found: Settings) -> dict[str, list[dict[str, Any]]]:
    """Every row of every archived table."""
    services = build_services(found)
    with services.transactions(read_only=True) as (connection, _):
        rows = {
            table.name: [
                dict(row._mapping)
                for row in connection.execute(select(table).order_by(*table.primary_key.columns))
            ]
            for table in archived(Table.metadata)
        }
    services.close()
    for each in rows.values():
        each.sort(key=lambda row: str(list(row.values())[:4]))
    return rows


def is_empty(found: Settings) -> bool:
    services = build_services(found)
    with services.transactions(read_only=True) as (connection, _):
        names = [table.name for table in archived(Table.metadata)]
        present = [name for name in names if services.transactions.engine.dialect.has_table(connection, name)]
        n_rows = [
            connection.execute(select(func.count()).select_from(table(name))).scalar_one() for name in present
        ]
    services.close()
    return not any(n_rows)


def test_every_row_arrives_as_it_was(ends, rich) -> None:
    moved(*ends)
    before, after = contents(ends[0]), contents(ends[1])
    assert after == before
    empty = {name for name, rows in before.items() if not rows}
    assert empty <= {"audit_log", "llm_calls"}, "the test's database is not rich enough"
    assert any(row["state"] for row in before["fits"]), "no fit has bytes"
    types = [[type(value) for row in rows for value in row.values()] for rows in before.values()]
    assert types == [[type(value) for row in rows for value in row.values()] for rows in after.values()]


def test_work_goes_on_in_the_new_database(ends, rich) -> None:
    old, study, project, key = rich
    with old.uow(read_only=True) as store:
        (running,) = store.trials.running_of(study.id, "tries again")
        before = store.studies.get(study.id)
        last_seq = max(event.seq for event in store.records.events(study.id, after=0, limit=1000))
    moved(*ends)
    new = build_services(ends[1])
    with new.uow(read_only=True) as store:
        known = store.records.key_by_hash(hash_key(key))
        reply = store.records.reply(project, "a key")
    assert known is not None
    assert known.scope is Scope.WORKER
    assert reply is not None
    assert reply.body == '{"é": 1}'
    # the worker's token holds at the new address
    assert running.lease is not None
    renew_lease(running.id, running.lease, project_id=project, uow=new.uow)
    complete(new, running, project, 0.25)
    with new.uow(read_only=True) as store:
        later = [event.seq for event in store.records.events(study.id, after=last_seq, limit=1000)]
    assert later
    assert min(later) > last_seq
    reaped = _end_lease_of_the_old_job(new)
    end_pause(new, reaped)
    advance_all(new)
    (fresh,) = claim(new, study, "new worker")
    assert fresh.number == before.next_number
    complete(new, fresh, project, 0.5)
    advance_all(new)
    assert broken_invariants(new) == []
    new.close()


def _end_lease_of_the_old_job(new: Services) -> JobId:
    """Let a minute pass for the job that an old compute worker was at."""
    with new.uow() as store:
        (job,) = store.jobs.held_under("of an old worker")
        store.jobs.save(replace(job, lease_expires_at=store.now() - timedelta(seconds=1)))
        store.commit()
    assert reap_job(job, uow=new.uow)
    return job.id


def test_a_job_of_the_old_service_is_taken_up_when_its_lease_ends(ends, rich) -> None:
    moved(*ends)
    new = build_services(ends[1])
    job_id = _end_lease_of_the_old_job(new)
    with new.uow(read_only=True) as store:
        assert store.jobs.get(job_id, lock=False).state is JobState.QUEUED
    new.close()


def test_numbers_of_rows_that_are_gone_are_not_given_again(ends, rich) -> None:
    old, study, _, _ = rich
    events = table_of(EventRow)
    with old.transactions(read_only=False) as (connection, commit):
        last = connection.execute(select(events.c.seq).order_by(events.c.seq.desc()).limit(1)).scalar_one()
        connection.execute(delete(events).where(events.c.seq > last - 5))
        commit()
    moved(*ends)
    new = build_services(ends[1])
    run_jobs(new)
    claim(new, study, "next", count=3)
    with new.uow(read_only=True) as store:
        seqs = [event.seq for event in store.records.events(study.id, after=last - 5, limit=100)]
    assert seqs
    assert min(seqs) == last + 1
    new.close()


def test_an_archive_of_the_new_database_is_the_archive_of_the_old(ends, rich) -> None:
    """There and back again; only the head says when."""
    first = gzip.decompress(moved(*ends)).splitlines()
    archive = io.BytesIO()
    export_database(ends[1], archive)
    second = gzip.decompress(archive.getvalue()).splitlines()
    assert [json.loads(line) for line in second[1:-1]] == [json.loads(line) for line in first[1:-1]]


def test_an_export_sees_one_instant(ends, rich, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed while an export runs is not in it, not even in part."""
    from bo_service.storage import archive

    old = rich[0]
    before = contents(ends[0])
    rows = archive._rows

    def slowly(connection: Any, name: str, columns: Any) -> Any:
        yield from rows(connection, name, columns)
        if name == "projects":
            with old.uow() as store:
                store.records.ensure_project("made meanwhile", now=store.now())
                store.commit()
            create_key("made meanwhile", Scope.VIEWER, project="made meanwhile", uow=old.uow)

    monkeypatch.setattr(archive, "_rows", slowly)
    written = io.BytesIO()
    export_database(ends[0], written)
    monkeypatch.setattr(archive, "_rows", rows)
    import_database(ends[1], io.BytesIO(written.getvalue()))
    assert contents(ends[1]) == before
    assert contents(ends[0]) != before


def test_a_database_with_rows_is_refused_and_stays(ends, rich) -> None:
    archive = moved(*ends)
    before = contents(ends[1])
    with pytest.raises(ArchiveError, match="rows in projects"):
        import_database(ends[1], io.BytesIO(archive))
    assert contents(ends[1]) == before


def test_every_column_has_a_kind() -> None:
    for found in archived(Table.metadata):
        assert KINDS.issuperset(kind_of(column) for column in found.columns)
    assert {table.name for table in Table.metadata.sorted_tables} - {
        t.name for t in archived(Table.metadata)
    } == {"processes"}


# what both databases can keep: PostgreSQL has no U+0000 in texts, and no half of a surrogate pair
TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00"), max_size=30)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | FLOAT | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
MOMENT = st.integers(1, 2 * 10**15).map(
    lambda us: datetime.fromtimestamp(0, UTC) + timedelta(microseconds=us)
)
STUDY = st.fixed_dictionaries(
    {
        "spec": st.dictionaries(TEXT, JSON_VALUE, max_size=4),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "state_reason": st.none() | TEXT,
        "cost": st.floats(allow_nan=False),
        "best_value": st.none() | FLOAT,
        "breaker_opened_at": st.none() | MOMENT,
        "next_number": st.integers(0, 2**31 - 1),
        "created_at": MOMENT,
    }
)


def spelled(value: Any) -> str:
    """Values of two databases alike: see Fingerprint."""
    found = Fingerprint()
    found.add([json.loads(json.dumps(value, default=str))])
    return f"{found.total:x}"


@pytest.fixture(scope="module", params=PAIRS)
def lasting_ends(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Both databases for all examples, with the services of the old one."""
    pair = [
        database(kind, tmp_path_factory.mktemp(name), request)
        for kind, name in zip(request.param, ("old", "new"), strict=True)
    ]
    for each in pair:
        upgrade_database(each)
    both = [build_services(each) for each in pair]
    yield pair, both
    for services in both:
        services.close()


def _emptied(services: Services) -> None:
    with services.transactions(read_only=False) as (connection, commit):
        for table in reversed(archived(Table.metadata)):
            connection.execute(delete(table))
        commit()


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(studies=st.lists(STUDY, min_size=1, max_size=10), state=st.none() | st.binary(max_size=300))
def test_every_value_a_database_keeps_arrives(lasting_ends, studies, state) -> None:
    (old_settings, new_settings), (old, new) = lasting_ends
    for services in (old, new):
        _emptied(services)
    project = ensure_default_project(old.uow)
    now = datetime(2030, 1, 1, tzinfo=UTC)
    fixed: dict[str, Any] = dict.fromkeys(
        ("spec_version", "data_version", "n_given", "last_improvement", "design_index"), 0
    )
    fixed |= {
        "project_id": project,
        "state": "ACTIVE",
        "counts": {},
        "updated_at": now,
    }
    with old.transactions(read_only=False) as (connection, commit):
        rows = [{"id": f"{i:036d}", "name": f"s{i}", **fixed, **each} for i, each in enumerate(studies)]
        connection.execute(insert(table_of(StudyRow)), rows)
        fit = {
            "id": "f",
            "study_id": rows[0]["id"],
            "data_version": 0,
            "surrogate": "gp",
            "options": studies[0]["spec"],
        }
        rest = {
            "inputs": {},
            "state": state,
            "diagnostics": {},
            "seconds": 0.1,
            "device": "cpu",
            "created_at": now,
        }
        connection.execute(insert(table_of(FitRow)), fit | rest)
        commit()
    moved(old_settings, new_settings)
    before, after = contents(old_settings), contents(new_settings)
    for name, found in before.items():
        for was, became in zip(found, after[name], strict=True):
            for column, value in was.items():
                if isinstance(value, dict):
                    assert spelled(became[column]) == spelled(value)
                    continue
                assert (became[column], type(became[column])) == (value, type(value)), column
                # SQLite keeps whole floats as integers, and so no negative zero
                if isinstance(value, float) and not new.transactions.is_sqlite:
                    assert math.copysign(1, value) == math.copysign(1, became[column])
