"""A service for the length of a benchmark."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import usage

from bo_service.client import Client, Unreachable

MAX_CONNECTIONS = 300

UNLIMITED = {"BO_RATE_LIMIT": "1000000"}
"""One key for all workers of a benchmark: the limiter runs, and refuses nothing."""

postgres: PostgresServer | None = None
"""The server started here, if one runs."""


@contextmanager
def running_service(
    *, database_url: str = "", processes: int = 1, settings: Mapping[str, str] | None = None
) -> Iterator[tuple[Client, int]]:
    """A client of a fresh service, on SQLite by default, and the process id of its (first) HTTP process."""
    # a benchmark that is stopped unwinds, and takes its service along
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BO_HOME"] = folder
        command = [sys.executable, "-m", "bo_service", "up", "--port", "0", "--processes", str(processes)]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=os.environ | UNLIMITED | {"BO_DATABASE_URL": database_url} | dict(settings or {}),
            )
        try:
            wait_for(Path(folder) / "credentials.json")
            with Client() as client:
                yield client, process.pid
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it in good order, or else at once."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def running_postgres() -> Iterator[str]:
    """The URL of a fresh database: on the server of BO_TEST_POSTGRES_URL, else on one started here."""
    with tempfile.TemporaryDirectory() as folder:
        url, server = os.environ.get("BO_TEST_POSTGRES_URL"), None
        if url is None:
            server = PostgresServer(Path(folder))
            url = server.start()
            globals()["postgres"] = server
        try:
            yield new_database(url)
        finally:
            if server is not None:
                server.delete()


def new_database(url: str) -> str:
    """The URL of an empty database on the same server."""
    import psycopg
    from sqlalchemy import make_url

    name = f"bench_{time.time_ns()}"
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return (
        make_url(url)
        .set(drivername="postgresql+psycopg", database=name)
        .render_as_string(hide_password=False)
    )


class PostgresServer:
    """A server of the pgserver wheel, as it comes but for its connections: 64 Optuna workers want more than 100."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self) -> str:
        """Its URL, ready for 300 connections."""
        import pgserver

        self._server = pgserver.get_server(self._folder, cleanup_mode="delete")
        self._server.psql(f"ALTER SYSTEM SET max_connections = {MAX_CONNECTIONS};")
        self.restart()
        return str(self._server.get_uri())

    def restart(self) -> None:
        """As an operator would: clients are hung up on."""
        from pgserver._commands import pg_ctl

        usage.postmasters.discard(self._server.get_pid())
        pg_ctl(["-w", "-m", "fast", "stop"], pgdata=self._folder, user=self._server.system_user, timeout=60)
        self._server.ensure_postgres_running()
        usage.postmasters.add(self._server.get_pid())

    def delete(self) -> None:
        """End it, with its files."""
        usage.postmasters.clear()
        self._server.cleanup()


def wait_for(credentials: Path) -> None:
    """Return when the service answers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with Client(patience_seconds=0.5) as client:
                if credentials.exists() and client.readiness()["status"] == "ok":
                    return
        except Unreachable:
            pass
        time.sleep(0.05)
    raise SystemExit("the service did not start")


def percentile(values: list[float], share: float) -> float:
    """The value below which this share lies."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
