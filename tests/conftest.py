"""Fixtures: real databases, a real service, builders of valid objects."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from sqlalchemy import make_url

from bo_service.bootstrap import Services, build_services, ensure_default_project, upgrade_database
from bo_service.domain.ids import ProjectId
from bo_service.settings import Settings

START_SECONDS = 60

MEMORY = Path("/dev/shm")
ROOMY = 4 * 2**30


@dataclass
class Service:
    """A running service on SQLite, with its admin key."""

    url: str
    key: str
    home: Path
    process: subprocess.Popen[bytes]
    port: int
    environment: dict[str, str]

    def http(self, key: str | None = None, **options: Any) -> httpx2.Client:
        return httpx2.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {key or self.key}"}, timeout=60, **options
        )

    def kill(self) -> None:
        """kill -9 of the HTTP process."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.process = start_process(self.port, self.environment)
        wait_until_ready(self.url, self.process)


StartService = Callable[..., Service]
"""Given settings, as environment variables: a service that runs with them."""


def start_process(port: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    processes = int(environment.get("TEST_API_PROCESSES", "1"))
    code = f"from bo_service.main import serve; serve('127.0.0.1', {port}, processes={processes})"
    with (Path(environment["BO_HOME"]) / "service.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=log, stderr=log)


def wait_for_credentials(path: Path, process: subprocess.Popen[bytes]) -> dict[str, str]:
    """URL and key, once the service has written them."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "the service ended at start"
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            time.sleep(0.05)
    raise TimeoutError("the service did not start")


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "the service ended at start"
        try:
            if httpx2.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.05)
    raise TimeoutError("the service did not start")


@contextmanager
def running_services(homes: pytest.TempPathFactory) -> Iterator[StartService]:
    """Starts services with settings of their own; all end with the block."""
    started: list[Service] = []

    def start(**settings: str) -> Service:
        home = homes.mktemp("home")
        environment = os.environ | {"BO_HOME": str(home)} | settings
        process = start_process(0, environment)
        found = wait_for_credentials(home / "credentials.json", process)
        wait_until_ready(found["url"], process)
        port = int(found["url"].rsplit(":", 1)[1])
        service = Service(found["url"], found["key"], home, process, port, environment)
        started.append(service)
        return service

    try:
        yield start
    finally:
        for service in started:
            service.process.terminate()
        for service in started:
            try:
                service.process.wait(10)
            except subprocess.TimeoutExpired:
                service.kill()


@pytest.fixture
def start_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartService]:
    """Start services that end with the test."""
    with running_services(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def start_module_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartService]:
    """Start services that end with the module."""
    with running_services(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests of a worker; tests keep apart by study name."""
    with running_services(tmp_path_factory) as start:
        yield start()


@pytest.fixture
def http(service: Service) -> Iterator[httpx2.Client]:
    with service.http() as client:
        yield client


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL: BO_TEST_POSTGRES_URL, else one started here."""
    given = os.environ.get("BO_TEST_POSTGRES_URL")
    if given:
        yield given
        return
    pgserver = pytest.importorskip(
        "pgserver", reason="no PostgreSQL: set BO_TEST_POSTGRES_URL or install pgserver"
    )
    folder = tmp_path_factory.mktemp("pg")
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOMY:
        # a new database for each test costs a tenth of what it costs on a disk
        folder = Path(tempfile.mkdtemp(prefix="bo-test-pg-", dir=MEMORY))
    server = pgserver.get_server(folder, cleanup_mode="delete")
    url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    _ask_postgres(url, "ALTER SYSTEM SET max_wal_size = '128MB'")
    _ask_postgres(url, "SELECT pg_reload_conf()")
    yield url
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def _ask_postgres(url: str, statement: str) -> None:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(statement.encode())


def _fresh_postgres(url: str, *, name: str | None = None, template: str = "template1") -> str:
    """A new database beside the given one, empty or as the template is."""
    name = name or f"bo_{time.time_ns()}_{os.getpid()}"
    _ask_postgres(url, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _drop_postgres(url: str, name: str | None) -> None:
    _ask_postgres(url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with all tables and no rows, to be copied."""
    settings = Settings(home=tmp_path_factory.mktemp("migrated"))
    upgrade_database(settings)
    return settings.home / "bo.db"


@pytest.fixture(scope="session")
def migrated_postgres(postgres_url: str) -> str:
    """The name of a database with all tables and no rows, to be copied."""
    url = _fresh_postgres(postgres_url)
    upgrade_database(Settings(database_url=url))
    return str(make_url(url).database)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a database without tables, on each kind of server."""
    if request.param == "sqlite":
        yield Settings(home=tmp_path)
        return
    server = request.getfixturevalue("postgres_url")
    settings = Settings(home=tmp_path, database_url=_fresh_postgres(server))
    yield settings
    _drop_postgres(server, make_url(settings.database_url).database)


@pytest.fixture
def services(empty_database: Settings, request: pytest.FixtureRequest) -> Iterator[Services]:
    """A migrated database of each kind, without processes around it."""
    if empty_database.database_url:
        server, name = request.getfixturevalue("postgres_url"), make_url(empty_database.database_url).database
        _drop_postgres(server, name)
        _fresh_postgres(server, name=name, template=request.getfixturevalue("migrated_postgres"))
    else:
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), empty_database.home / "bo.db")
    built = build_services(empty_database)
    yield built
    built.transactions.engine.dispose()


@pytest.fixture
def project(services: Services) -> ProjectId:
    return ensure_default_project(services.uow)


def spec_json(**changes: Any) -> dict[str, Any]:
    """A small valid study; `changes` replace top-level fields."""
    return {
        "name": f"study-{time.time_ns()}",
        "parameters": [
            {"type": "float", "name": "x", "low": 0.0, "high": 1.0},
            {"type": "int", "name": "k", "low": 1, "high": 8},
        ],
        "metrics": [{"name": "loss", "goal": "minimize"}],
        "surrogate": {"name": "sobol"},
        "seed": 7,
    } | changes


@pytest.fixture
def make_spec() -> Callable[..., dict[str, Any]]:
    return spec_json
