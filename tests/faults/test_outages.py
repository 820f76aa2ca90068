"""What the processes say while a server is away: a line when it goes, one when it is back, and no tracebacks."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bo_service.client import Client, Unreachable
from tests.distributed.conftest import Fleet, RedisServer, free_port
from tests.faults.test_servers import PostgresServer
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.postgres, pytest.mark.timeout(300)]

OUTAGE_SECONDS = 20


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[PostgresServer]:
    server = PostgresServer(tmp_path / "pg")
    yield server
    server.stop()


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    return postgres.url


def said(fleet: Fleet, name: str) -> list[str]:
    return [
        line for line in fleet.log(name).splitlines() if re.search(r"WARNING|ERROR|CRITICAL|Traceback", line)
    ]


def give_one(client: Client, study: str) -> None:
    (trial,) = until(lambda: client.claim(study, "w", wait_seconds=1).trials, "a trial")
    client.complete(trial, {"loss": trial.parameters["x"]})


def test_a_broker_that_is_away_is_said_once_and_soon_found_again(
    fleet: Fleet, redis_server: RedisServer, make_spec
) -> None:
    api = fleet.api()
    fleet.relay()
    fleet.compute()
    spec = make_spec(surrogate={"name": "gp"}, initial={"size": 1})
    with Client(api.url, api.key) as client:
        study = client.create_study(spec).id
        give_one(client, study)
        redis_server.kill()
        time.sleep(OUTAGE_SECONDS)
        redis_server.start()
        back = time.monotonic()
        give_one(client, study)
        assert time.monotonic() - back < 15
        until(lambda: "is back" in fleet.log("relay"), "the relay's word")
    for name in ("relay", "compute"):
        lines = said(fleet, name)
        assert len(lines) <= 3, lines
        assert "Traceback" not in fleet.log(name)
    assert "superuser" not in fleet.log("compute")
    assert "exchange" not in fleet.log("compute")


def test_a_database_that_is_away_is_said_once_by_each_process(
    fleet: Fleet, postgres: PostgresServer, make_spec
) -> None:
    api = fleet.api()
    fleet.relay()
    fleet.compute()
    with Client(api.url, api.key, patience_seconds=60) as client:
        study = client.create_study(make_spec()).id
        give_one(client, study)
        options = {"pgdata": postgres._server.pgdata, "user": postgres._server.system_user, "timeout": 30}
        postgres._pg_ctl(["-w", "-m", "fast", "stop"], **options)
        impatient = Client(api.url, api.key, patience_seconds=OUTAGE_SECONDS)
        with impatient, pytest.raises(Unreachable, match="503"):
            impatient.claim(study, "w")
        postgres._server.ensure_postgres_running()
        give_one(client, study)
    logs = {name: said(fleet, name) for name in ("relay", "compute")}
    service = (api.home / "service.log").read_text()
    logs["api"] = [line for line in service.splitlines() if re.search("WARNING|ERROR|Traceback", line)]
    for name, lines in logs.items():
        assert len(lines) <= 4, "\n".join((name, *lines))
        assert not any("Traceback" in line for line in lines), (name, lines)


def test_a_relay_without_its_servers_waits_for_them_calmly_and_ends_well(fleet: Fleet) -> None:
    relay = fleet.relay(
        BO_BROKER_URL=f"redis://:secret@127.0.0.1:{free_port()}/0",
        BO_DATABASE_URL=f"postgresql://bo:secret@127.0.0.1:{free_port()}/bo",
    )
    until(lambda: "the database is away" in fleet.log("relay"), "a line")
    until(lambda: "the broker is away" in fleet.log("relay"), "a line")
    time.sleep(8)
    assert relay.poll() is None
    relay.terminate()
    relay.wait(15)
    assert len(said(fleet, "relay")) <= 3, fleet.log("relay")
    assert "Traceback" not in fleet.log("relay")
    assert "secret" not in fleet.log("relay")
