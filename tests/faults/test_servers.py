"""PostgreSQL and Redis restarted under load; Redis flushed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bo_service.client import Client
from tests.distributed.conftest import Fleet, RedisServer
from tests.faults.conftest import Load, assert_nothing_lost

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.postgres, pytest.mark.timeout(300)]


class PostgresServer:
    """A PostgreSQL of this test's own, which it may stop and start."""

    def __init__(self, folder: Path) -> None:
        pgserver = pytest.importorskip("pgserver", reason="restarting PostgreSQL needs the wheel pgserver")
        self._pg_ctl = pgserver._commands.pg_ctl
        self._server = pgserver.get_server(folder, cleanup_mode="delete")
        self.url = self._server.get_uri().replace("postgresql://", "postgresql+psycopg://")

    def restart(self, mode: str) -> None:
        """`fast` ends every session, `immediate` is a crash."""
        options = {"pgdata": self._server.pgdata, "user": self._server.system_user, "timeout": 30}
        self._pg_ctl(["-w", "-m", mode, "stop"], **options)
        self._server.ensure_postgres_running()

    def stop(self) -> None:
        self._server.cleanup()


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[PostgresServer]:
    server = PostgresServer(tmp_path / "pg")
    yield server
    server.stop()


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    """Takes the place of the shared server's."""
    return postgres.url


def start(fleet: Fleet, make_spec, n_trials: int) -> Load:
    fleet.environment |= {"BO_REAPER_SECONDS": "0.5", "BO_JOB_LEASE_SECONDS": "5", "TEST_API_PROCESSES": "2"}
    api = fleet.api()
    fleet.relay()
    fleet.compute()
    spec = make_spec(retry={"lease_seconds": 10}, stopping={"max_trials": n_trials})
    with Client(api.url, api.key) as client:
        study = client.create_study(spec).id
    return Load(api.url, api.key, study, n_trials)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_postgres_restarted_under_load(fleet: Fleet, postgres: PostgresServer, make_spec, mode: str) -> None:
    load = start(fleet, make_spec, 300)
    with load.running():
        load.wait(50)
        postgres.restart(mode)
        load.wait(150)
        postgres.restart(mode)
    assert_nothing_lost(fleet.settings, load)


def test_redis_flushed_and_restarted_under_load(fleet: Fleet, redis_server: RedisServer, make_spec) -> None:
    load = start(fleet, make_spec, 300)
    with load.running():
        load.wait(50)
        redis_server.flush()
        load.wait(100)
        redis_server.kill()
        redis_server.start()
        load.wait(200)
        redis_server.flush()
    assert_nothing_lost(fleet.settings, load)
