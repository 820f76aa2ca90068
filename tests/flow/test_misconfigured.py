"""Settings that cannot work end a command with one line that says which and why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bo_service.commands.doctor import _broker
from bo_service.commands.misconfigured import misspelt
from bo_service.settings import Settings
from tests.distributed.conftest import free_port

NOBODY = f"postgresql://bo:secret@127.0.0.1:{free_port()}/bo"


def bo(home: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Status and standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "bo_service", *arguments],
        env=os.environ | {"BO_HOME": str(home), "COLUMNS": "80"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("command", "environment", "says"),
    [
        ("db check", {"BO_DATABASE_URL": NOBODY}, "BO_DATABASE_URL: postgresql+psycopg://bo:***@127.0.0.1"),
        ("db upgrade", {"BO_DATABASE_URL": NOBODY}, "onnection refused"),
        (
            "up --port 0",
            {"BO_DATABASE_URL": NOBODY},
            "BO_DATABASE_URL: postgresql+psycopg://bo:***@127.0.0.1",
        ),
        ("up --port 0", {"BO_DATABASE_URL": "sqlite:////no/such/folder/bo.db"}, "BO_DATABASE_URL: sqlite://"),
        ("db current", {"BO_DATABASE_URL": "sqlite:////etc/passwd"}, "is not a database"),
        ("db check", {"BO_DATABASE_URL": "mysql://bo:secret@db/bo"}, "only sqlite and postgresql"),
        ("relay", {"BO_DATABASE_URL": "mysql://bo:secret@db/bo"}, "BO_DATABASE_URL: only sqlite"),
        ("compute", {"BO_DATABASE_URL": "bo.db"}, "BO_DATABASE_URL: only sqlite"),
        ("relay", {"BO_COMPUTE": "externl"}, "BO_COMPUTE: Input should be 'embedded' or 'external'"),
        ("up", {"BO_TRUSTED_PROXIES": "foo"}, "BO_TRUSTED_PROXIES: not JSON; write a list"),
        ("relay", {"BO_BROKER_URL": "http://u:secret@foo"}, "BO_BROKER_URL: only Redis and RabbitMQ"),
        ("up", {"BO_BROKER_URL": "http://u:secret@foo"}, "BO_BROKER_URL: only Redis and RabbitMQ"),
        ("compute", {"BO_BROKER_URL": "http://u:secret@foo"}, "BO_BROKER_URL: only Redis and RabbitMQ"),
        ("evaluate --objective os:getcwd", {"BO_BROKER_URL": "foo"}, "BO_BROKER_URL: only Redis"),
        ("relay", {"BO_COMPUTE": "embedded"}, "BO_COMPUTE: bo relay belongs to a service with"),
        ("compute", {"BO_COMPUTE": "embedded"}, "BO_COMPUTE: bo compute belongs to a service with"),
        ("db upgrade nope", {}, "nope: Can't locate revision"),
    ],
)
def test_a_mistake_ends_the_command_with_one_line(
    tmp_path: Path, command: str, environment: dict[str, str], says: str
) -> None:
    status, err = bo(tmp_path, *command.split(), **{"BO_COMPUTE": "external"} | environment)
    lines = [line for line in err.splitlines() if " INFO " not in line]
    assert status == 1, err
    assert len(lines) == 1, err
    assert says in lines[0]
    assert "secret" not in err


def test_a_database_without_tables_is_no_mistake_of_usage(tmp_path: Path) -> None:
    status, err = bo(tmp_path, "db", "check", BO_DATABASE_URL=f"sqlite:///{tmp_path / 'new.db'}")
    assert status == 1
    assert "Usage" not in err
    assert err.strip().endswith("run `bo db upgrade` first")


def test_a_misspelt_variable_is_warned_of(tmp_path: Path) -> None:
    status, err = bo(tmp_path, "--version", BO_DATABASE_POLL_SIZE="5", BO_UNRELATED_THINGS="x")
    assert status == 0
    assert err == "warning: BO_DATABASE_POLL_SIZE means nothing; did you mean BO_DATABASE_POOL_SIZE?\n"
    assert list(misspelt({"BO_ULR": "x", "BO_HOME": "y", "PATH": "z"})) == [
        "warning: BO_ULR means nothing; did you mean BO_URL?"
    ]


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_name_of_postgresql_means_the_driver_there_is(scheme: str) -> None:
    assert Settings(database_url=f"{scheme}://u:p@h/d").database_url == "postgresql+psycopg://u:p@h/d"


@pytest.mark.parametrize(
    "arguments",
    [
        "compute --concurrency 0",
        "evaluate --objective os:getcwd --concurrency -1",
        "work --study s --command true --slots 0",
    ],
)
def test_no_worker_at_all_is_refused(tmp_path: Path, arguments: str) -> None:
    status, err = bo(tmp_path, *arguments.split(), BO_COMPUTE="external")
    assert status == 2
    assert "is not a whole number from 1 on" in err


def test_doctor_looks_for_the_broker_where_one_is_needed(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path, compute="external", broker_url=f"redis://:secret@127.0.0.1:{free_port()}/0"
    )
    found = _broker(settings)
    assert not found.is_fine
    assert "secret" not in found.detail
    assert "BO_BROKER_URL" in found.remedy
    assert _broker(Settings(home=tmp_path)).is_fine


def test_help_of_compute_is_there_for_everybody(tmp_path: Path) -> None:
    status, err = bo(tmp_path, "compute", "--help")
    assert (status, err) == (0, "")
