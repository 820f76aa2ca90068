"""What `bo import` refuses, and that nothing of it stays; and the two commands as users run them."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

import migrations
from bo_service.bootstrap import (
    broken_invariants,
    build_services,
    database_revision,
    downgrade_database,
    ensure_default_project,
    export_database,
    import_database,
    upgrade_database,
)
from bo_service.domain.records import Scope
from bo_service.orchestrator.manage_keys import create_key
from bo_service.settings import Settings
from bo_service.storage.archive_file import ArchiveError
from bo_service.storage.tables import StudyRow, table_of
from tests.contract.test_archive import database, is_empty, moved
from tests.steps import claim, complete, new_study, run_jobs
from tests.waiting import until


def damaged(archive: bytes, kind: str) -> bytes:
    lines = gzip.decompress(archive).splitlines(keepends=True)
    some = next(i for i, line in enumerate(lines) if line.startswith(b'{"table":"trials"')) + 1
    change = {
        "a row lost": lambda: lines[:some] + lines[some + 1 :],
        "a row changed": lambda: [*lines[:some], lines[some].replace(b"0", b"1", 1), *lines[some + 1 :]],
        "a row twice": lambda: [*lines[:some], lines[some], *lines[some:]],
        "no end": lambda: lines[:-1],
        "half a line": lambda: [*lines[:some], lines[some][:40]],
        "more after the end": lambda: [*lines, b"{}\n"],
        "another column": lambda: [line.replace(b'"fixed_key":"text"', b'"other":"text"') for line in lines],
        "an infinite number": lambda: [line.replace(b",60.0,", b",1e999,") for line in lines],
        "no number": lambda: [line.replace(b",60.0,", b",NaN,") for line in lines],
        "an unknown kind": lambda: [
            line.replace(b'"key_hash":"text"', b'"key_hash":"pickle"') for line in lines
        ],
        "too long a text": lambda: [line.replace(b',"w",', b',"' + b"w" * 300 + b'",') for line in lines],
    }
    return gzip.compress(b"".join(change[kind]()))


DAMAGES = {
    "a row lost": "rows, not|still|violates|FOREIGN KEY",
    "a row changed": "SHA-256|line|hold|FOREIGN KEY",
    "a row twice": "cannot hold its rows",
    "no end": "cut off",
    "half a line": "cut off",
    "more after the end": "more after",
    "another column": "no column other",
    "an infinite number": "is no JSON",
    "no number": "is no JSON",
    "an unknown kind": "no table this version knows",
    "too long a text": "SHA-256|cannot hold",
}


@pytest.fixture(scope="module")
def small_archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An archive with a trial in it."""
    from tests.conftest import spec_json

    found = Settings(home=tmp_path_factory.mktemp("small"))
    upgrade_database(found)
    services = build_services(found)
    project = ensure_default_project(services.uow)
    create_key("worker", Scope.WORKER, project="default", uow=services.uow)
    study = new_study(services, project, spec_json)
    run_jobs(services)
    for trial in claim(services, study, count=3):
        complete(services, trial, project, 0.5)
    run_jobs(services)
    services.close()
    archive = io.BytesIO()
    export_database(found, archive)
    return archive.getvalue()


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_archive_is_told_and_leaves_the_database_empty(
    empty_database: Settings, small_archive: bytes, kind: str
) -> None:
    with pytest.raises(ArchiveError, match=DAMAGES[kind]):
        import_database(empty_database, io.BytesIO(damaged(small_archive, kind)))
    assert is_empty(empty_database)
    import_database(empty_database, io.BytesIO(small_archive))
    assert not is_empty(empty_database)


@pytest.mark.parametrize("n_bytes", [0, 1, 20, 500, -300, -20, -1])
def test_an_archive_cut_off_anywhere_is_told(
    empty_database: Settings, small_archive: bytes, n_bytes: int
) -> None:
    with pytest.raises(ArchiveError, match=r"cut off|no archive"):
        import_database(empty_database, io.BytesIO(small_archive[:n_bytes]))
    assert is_empty(empty_database)


def test_a_flipped_bit_anywhere_is_told(tmp_path: Path, small_archive: bytes) -> None:
    empty = Settings(home=tmp_path)
    for position in range(12, len(small_archive), len(small_archive) // 40):
        broken = bytearray(small_archive)
        broken[position] ^= 0x10
        with pytest.raises(ArchiveError):
            import_database(empty, io.BytesIO(bytes(broken)))
        assert is_empty(empty)


@pytest.mark.parametrize(
    "content",
    [b"SQLite format 3\x00", gzip.compress(b"x" * 10), gzip.compress(b"[1]\n")],
    ids=["a database", "no JSON", "other JSON"],  # the bytes of gzip hold the time
)
def test_a_foreign_file_is_told_before_a_database_is_made(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ArchiveError, match="no archive of bo-service"):
        import_database(Settings(home=tmp_path / "new"), io.BytesIO(content))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"format":1', b'"format":2', "form 2.*version 0.1.0 of bo-service or a later one"),
        (b'"revision":"', b'"revision":"9', "revision 9.*import it with version 0.1.0"),
    ],
)
def test_an_archive_of_a_later_version_says_which_to_use(
    tmp_path: Path, small_archive: bytes, old: bytes, new: bytes, message: str
) -> None:
    lines = gzip.decompress(small_archive).replace(old, new, 1)
    with pytest.raises(ArchiveError, match=message):
        import_database(Settings(home=tmp_path), io.BytesIO(gzip.compress(lines)))


def test_an_archive_of_an_older_revision_is_migrated(
    empty_database: Settings, tmp_path: Path, make_spec
) -> None:
    """The older service's tables, as its own version would have written them."""
    from sqlalchemy import MetaData, create_engine

    from bo_service.storage.archive import write_archive
    from bo_service.storage.archive_file import Head
    from bo_service.storage.tables import Json, UtcDateTime

    old = Settings(home=tmp_path / "old")
    upgrade_database(old)
    services = build_services(old)
    project = ensure_default_project(services.uow)
    study = new_study(services, project, make_spec)
    run_jobs(services)
    (trial,) = claim(services, study)
    complete(services, trial, project, 0.5)
    services.close()
    downgrade_database(old, "0001")
    engine = create_engine(old.resolved_database_url())
    tables = MetaData()
    tables.reflect(engine)
    tables.remove(tables.tables[migrations.VERSION_TABLE])
    for each in tables.tables.values():
        for column in each.columns:
            kind = type(column.type).__name__
            column.type = {"JSON": Json, "DATETIME": UtcDateTime()}.get(kind, column.type)
    archive = io.BytesIO()
    with engine.connect() as connection:
        write_archive(
            connection, archive, Head(revision="0001", version="0.0.9", written_at=""), metadata=tables
        )
    engine.dispose()
    report = import_database(empty_database, io.BytesIO(archive.getvalue()))
    assert (report.revision, report.version) == ("0001", "0.0.9")
    present, newest = database_revision(empty_database)
    assert present == newest
    moved_services = build_services(empty_database)
    with moved_services.uow(read_only=True) as store:
        assert store.trials.get(trial.id).measurements["loss"].value == 0.5
        assert [o.attempt for o in store.trials.observations(trial.id)] == [0]
    assert broken_invariants(moved_services) == []
    moved_services.close()
    with pytest.raises(ArchiveError, match="rows in"):
        import_database(empty_database, io.BytesIO(archive.getvalue()))
    other = Settings(home=tmp_path / "other")
    upgrade_database(other)
    with pytest.raises(ArchiveError, match="database without tables"):
        import_database(other, io.BytesIO(archive.getvalue()))


def test_a_database_at_an_older_revision_is_not_exported(empty_database: Settings) -> None:
    with pytest.raises(ArchiveError, match=r"no database at|revision none"):
        export_database(empty_database, io.BytesIO())
    upgrade_database(empty_database, "0001")
    with pytest.raises(ArchiveError, match="bo db upgrade"):
        export_database(empty_database, io.BytesIO())


def test_a_database_that_gives_back_something_else_is_told(tmp_path: Path, small_archive: bytes) -> None:
    found = Settings(home=tmp_path)
    upgrade_database(found)
    services = build_services(found)
    change = "CREATE TRIGGER t AFTER INSERT ON trials BEGIN UPDATE trials SET worker = worker || 'x'; END"
    with services.transactions(read_only=False) as (connection, commit):
        connection.execute(text(change))
        commit()
    services.close()
    with pytest.raises(ArchiveError, match="table trials: the database gives back 3 rows that are not the 3"):
        import_database(found, io.BytesIO(small_archive))
    assert is_empty(found)


@pytest.mark.postgres
@pytest.mark.parametrize("bad", ["\x00", "\ud800"])
def test_what_postgres_cannot_keep_is_told_and_nothing_is_moved(
    tmp_path, request, make_spec, bad: str
) -> None:
    old, new = database("sqlite", tmp_path / "old", request), database("postgres", tmp_path / "new", request)
    upgrade_database(old)
    services = build_services(old)
    project = ensure_default_project(services.uow)
    study = new_study(services, project, make_spec)
    studies = table_of(StudyRow)
    with services.transactions(read_only=False) as (connection, commit):
        connection.execute(studies.update().where(studies.c.id == study.id).values(counts={"x": bad}))
        commit()
    services.close()
    with pytest.raises(ArchiveError, match="table studies: the database cannot hold its rows"):
        moved(old, new)
    assert is_empty(new)


IMPORT = """
import sys
from bo_service import bootstrap
from bo_service.settings import Settings
from bo_service.storage import archive
compare = archive._compare
def told(connection, part):
    if part.name == "trials":
        print("loaded", flush=True)
        sys.stdin.readline()
    compare(connection, part)
archive._compare = told
bootstrap.import_database(Settings(), open(sys.argv[1], "rb"))
"""


def test_a_killed_import_leaves_the_database_empty(
    empty_database: Settings, small_archive: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "archive.gz"
    file.write_bytes(small_archive)
    environment = os.environ | {
        "BO_HOME": str(empty_database.home),
        "BO_DATABASE_URL": empty_database.database_url,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORT, str(file)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "loaded\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until(lambda: is_empty(empty_database), "the end of half an import")
    import_database(empty_database, io.BytesIO(small_archive))


def test_of_two_imports_at_once_one_is_done(
    empty_database: Settings, small_archive: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "archive.gz"
    file.write_bytes(small_archive)
    environment = os.environ | {
        "BO_HOME": str(empty_database.home),
        "BO_DATABASE_URL": empty_database.database_url,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "bo_service", "import", str(file), "--json"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    ends = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert sorted(code for _, _, code in ends) == [0, 1], ends
    (refusal,) = [err for _, err, code in ends if code]
    assert "has rows in projects" in " ".join(refusal.split())
    services = build_services(empty_database)
    assert broken_invariants(services) == []
    services.close()


def bo(home: Path, *arguments: str, stdin: bytes | None = None) -> tuple[int, bytes, str]:
    done = subprocess.run(
        [sys.executable, "-m", "bo_service", *arguments],
        env=os.environ | {"BO_HOME": str(home), "BO_DATABASE_URL": "", "COLUMNS": "200"},
        input=stdin,
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.slow
def test_the_commands(tmp_path: Path, small_archive: bytes) -> None:
    file = tmp_path / "bo.archive"
    status, _, err = bo(tmp_path / "nowhere", "export", str(file))
    assert (status, file.exists()) == (1, False)
    assert "there is no database at" in err
    status, out, err = bo(tmp_path / "first", "import", "-", stdin=small_archive)
    assert status == 0, err
    assert b"imported" in out
    status, out, err = bo(tmp_path / "first", "export", str(file), "--json")
    assert status == 0, err
    report = json.loads(out)
    assert report["rows"]["trials"] == 3
    assert report["bytes"] == file.stat().st_size
    assert file.stat().st_mode & 0o077 == 0
    status, _, err = bo(tmp_path / "first", "export", str(file))
    assert status == 1
    assert "--force replaces it" in err
    assert bo(tmp_path / "first", "export", str(file), "--force")[0] == 0
    status, out, err = bo(tmp_path / "first", "export", "-")
    assert status == 0
    assert "exported" in err
    assert gzip.decompress(out).splitlines()[1:] == gzip.decompress(file.read_bytes()).splitlines()[1:]
    assert list(tmp_path.glob(".*")) == []
    assert bo(tmp_path / "second", "import", str(file))[0] == 0
    status, out, err = bo(tmp_path / "second", "db", "check")
    assert status == 0, err
    status, _, err = bo(tmp_path / "third", "import", str(tmp_path / "no such file"))
    assert status == 1
    assert "No such file" in err
