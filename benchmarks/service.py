"""A service for the length of a benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bo_service.client import Client, Unreachable


@contextmanager
def running_service() -> Iterator[tuple[Client, int]]:
    """A client of a fresh service on SQLite, and the process id of its HTTP process."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BO_HOME"] = folder
        command = [sys.executable, "-m", "bo_service", "up", "--port", "0"]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(Path(folder) / "credentials.json")
            with Client() as client:
                yield client, process.pid
        finally:
            process.terminate()
            process.wait(20)


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
