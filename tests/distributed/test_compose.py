"""docker-compose.yml without an engine: the very same commands, settings, secrets and health checks, started by hand.

Only host names, ports and paths differ. Where the machine allows it, each process sees a root it cannot write to and a
folder for temporary files of its own, and has no capability but the one by which it reaches the test's database.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from bo_service.client import Client
from tests.deploy.compose import ROOT, Compose, ComposeService, load_compose, seconds
from tests.distributed.conftest import free_port, redis_binary
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.postgres]

CONFINE = """
mount -t tmpfs -o mode=1777 tmpfs "$TMPDIR" && mount -o remount,bind,ro / || exit 99
exec setpriv --bounding-set=-all,+dac_override --inh-caps=-all --no-new-privs "$@"
"""


@cache
def confinement() -> tuple[str, ...]:
    """The words before a command that give it a root it cannot write to; none where this machine does not let us."""
    words = ("unshare", "--mount", "sh", "-c", CONFINE, "sh")
    probe = [*words, "sh", "-c", "! touch /confined 2>/dev/null"]
    with TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                probe, env=os.environ | {"TMPDIR": folder}, capture_output=True, check=False
            )
        except OSError:
            return ()
    return words if done.returncode == 0 else ()


@dataclass
class Stack:
    """The services of the file on this machine."""

    compose: Compose
    folder: Path
    secrets: Path
    api_port: int
    redis_port: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    def here(self, text: str, service: ComposeService) -> str:
        """A word of the file with this machine's address or path for the container's."""
        text = text.replace("http://api:8000", self.url).replace("http://127.0.0.1:8000", self.url)
        text = text.replace("/run/secrets", str(self.secrets_of(service)))
        text = text.replace(
            "redis-cli ping", f"{Path(redis_binary()).with_name('redis-cli')} -p {self.redis_port} ping"
        )
        return {"0.0.0.0": "127.0.0.1", "8000": str(self.api_port)}.get(text, text)  # noqa: S104

    def secrets_of(self, service: ComposeService) -> Path:
        """A folder of the secrets this service has, and no others, under their names in the container."""
        folder = self.folder / "secrets" / service.name
        if not folder.exists():
            folder.mkdir(parents=True)
            for secret in service.secrets:
                (folder / secret.target).write_text((self.secrets / secret.source).read_text())
        return folder

    def environment(self, service: ComposeService) -> dict[str, str]:
        """The image's variables and the service's own, and what the test's interpreter needs; nothing else."""
        home = self.folder / "home" / service.name
        tmp = self.folder / "tmp" / service.name
        for folder in (home, tmp):
            folder.mkdir(parents=True, exist_ok=True)
        found = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(home),
            "BO_HOME": str(home),
            "TMPDIR": str(tmp),
            "BO_SECRETS_DIR": str(self.secrets_of(service)),
        }
        return found | {name: self.here(value, service) for name, value in service.environment.items()}

    def words(self, name: str, *arguments: str) -> list[str]:
        """The command line of a service, or another `bo` command in its place."""
        service = self.compose.services[name]
        program = [sys.executable, "-m", "bo_service"]
        return [
            *confinement(),
            *program,
            *(self.here(word, service) for word in arguments or service.command),
        ]

    def run(self, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`docker compose run --rm NAME ARGUMENTS`."""
        service = self.compose.services[name]
        return subprocess.run(
            self.words(name, *arguments),
            env=self.environment(service) | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, name: str) -> None:
        service = self.compose.services[name]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.words(name),
                env=self.environment(service),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_redis(self) -> None:
        """With its own program and the file's options."""
        service = self.compose.services["redis"]
        program, *options = [self.here(word, service) for word in service.command]
        assert program == "redis-server"
        command = [redis_binary(), *options, "--port", str(self.redis_port), "--dir", str(self.folder)]
        self.processes["redis"] = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)

    def health(self, name: str) -> str:
        """Empty where the health check of the file says that all is well, else what it says."""
        service = self.compose.services[name]
        kind, *command = (self.here(word, service) for word in service.health)
        if kind == "CMD-SHELL":
            words = ["sh", "-c", *command]
        else:
            assert command[0] == "bo"
            words = self.words(name, *command[1:])
        limit = 6 * seconds(service.raw["healthcheck"]["timeout"])  # this machine is shared with other tests
        done = subprocess.run(
            words, env=self.environment(service), capture_output=True, text=True, timeout=limit, check=False
        )
        return "" if done.returncode == 0 else done.stdout + done.stderr or "no word"

    def stop(self, name: str) -> int:
        """SIGTERM; the status with which it ended within its grace period."""
        process = self.processes.pop(name)
        process.terminate()
        return process.wait(seconds(self.compose.services[name].raw["stop_grace_period"]))

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


@pytest.fixture
def stack(tmp_path: Path, postgres_url: str) -> Iterator[Stack]:
    """Fresh secrets, a database of the file's user, ports of our own; nothing runs yet."""
    secrets = tmp_path / "made"
    subprocess.run([ROOT / "deploy" / "make_secrets.sh", secrets], check=True, capture_output=True)
    found = Stack(load_compose(), tmp_path, secrets, free_port(), free_port())
    _rewrite(secrets / "bo_database_url", lambda url: _database_for(url, postgres_url))
    _rewrite(
        secrets / "bo_broker_url", lambda url: url.replace("@redis:6379", f"@127.0.0.1:{found.redis_port}")
    )
    yield found
    for process in found.processes.values():
        # what a process started is in its group, and would outlive it
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _rewrite(path: Path, change: Callable[[str], str]) -> None:
    changed = change(path.read_text().strip())
    path.unlink()
    path.write_text(changed + "\n")


def _database_for(url: str, server: str) -> str:
    """The URL with the test's server in it, where its user now exists and owns an empty database."""
    wanted, there = make_url(url), make_url(server)
    name = f"compose_{time.time_ns()}"
    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [wanted.username]).fetchone()
        make = "ALTER ROLE {} LOGIN PASSWORD {}" if known else "CREATE ROLE {} LOGIN PASSWORD {}"
        role = sql.Identifier(str(wanted.username))
        connection.execute(sql.SQL(make).format(role, sql.Literal(wanted.password)))
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), role))
    moved = wanted.set(host=there.host, port=there.port, database=name, query=there.query)
    return moved.render_as_string(hide_password=False)


def bring_up(stack: Stack) -> str:
    """In the order the file gives; returns the first admin key."""
    stack.start_redis()
    until(lambda: not stack.health("redis"), "Redis is healthy")
    migrated = stack.run("bo")
    assert migrated.returncode == 0, migrated.stderr
    for name in ("api", "relay", "compute-cpu"):
        stack.start(name)
    first = stack.run("bo", "key", "bootstrap", "me")
    assert first.returncode == 0, first.stderr
    return first.stdout.split()[0]


def test_a_study_runs_to_its_end_and_every_process_ends_with_status_0(stack: Stack) -> None:
    key = bring_up(stack)
    for name in ("api", "relay", "compute-cpu"):
        until(lambda name=name: not stack.health(name), f"{name} is healthy", seconds=120)
    assert "unauthorized" in stack.health("worker"), "its key is not valid yet"
    for _ in range(2):
        assert stack.run("worker-key").returncode == 0
    assert stack.health("worker") == ""

    spec = json.loads((ROOT / "examples" / "digits.json").read_text()) | {"stopping": {"max_trials": 10}}
    path = stack.folder / "digits.json"
    path.write_text(json.dumps(spec))
    refused = stack.run("worker", "study", "create", str(path))
    assert "forbidden" in refused.stderr, "a worker's key makes no studies"
    created = stack.run("worker", "study", "create", str(path), BO_API_KEY=key)
    assert created.returncode == 0, created.stderr
    stack.start("worker")
    with Client(stack.url, key) as client:
        until(lambda: client.study("digits").state != "ACTIVE", "the study's end", seconds=240)
        study = client.study("digits")
        assert study.n_closed == 10
        generators = {trial.raw["provenance"]["generator"] for trial in client.trials("digits")}
    assert any(generator.startswith("gp:") for generator in generators)
    assert stack.processes.pop("worker").wait(60) == 0, stack.log("worker")

    assert {name: stack.stop(name) for name in ("relay", "compute-cpu", "api")} == {
        "relay": 0,
        "compute-cpu": 0,
        "api": 0,
    }
    assert "no relay on" in stack.health("relay")
    assert "no compute on" in stack.health("compute-cpu")
    assert stack.health("api")
    checked = stack.run("bo", "db", "check")
    assert checked.returncode == 0, checked.stdout
    nothing_was_written_or_told(stack, key)


def nothing_was_written_or_told(stack: Stack, key: str) -> None:
    """No process needs a folder of its own, and no secret is in a log."""
    assert [str(path) for path in (stack.folder / "home").rglob("*") if path.is_file()] == []
    logs = "".join(path.read_text() for path in stack.folder.glob("*.log"))
    assert "relaying the jobs of" in logs
    assert "Read-only file system" not in logs
    assert "Permission denied" not in logs
    secret_words = {"admin key": key}
    for path in stack.secrets.iterdir():
        found = re.search(r"[A-Za-z0-9_-]{40,}", path.read_text())
        assert found, path.name
        secret_words[path.name] = found[0]
    assert [name for name, word in secret_words.items() if word in logs] == []


def test_a_relay_without_its_broker_is_unhealthy_until_it_is_back(stack: Stack) -> None:
    bring_up(stack)
    until(lambda: not stack.health("relay"), "the relay is healthy", seconds=120)
    redis = stack.processes["redis"]
    redis.kill()
    redis.wait()
    until(lambda: "broker" in stack.health("relay"), "the relay misses its broker", seconds=120)
    stack.start_redis()
    until(lambda: not stack.health("relay"), "the relay is healthy again", seconds=120)


def test_a_worker_killed_leaves_an_unhealthy_container(stack: Stack) -> None:
    bring_up(stack)
    until(lambda: not stack.health("relay"), "the relay is healthy", seconds=120)
    relay = stack.processes.pop("relay")
    relay.kill()
    relay.wait()
    until(lambda: "was heard of" in stack.health("relay"), "the relay is missed", seconds=120)
