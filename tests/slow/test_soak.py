"""The soak of the benchmarks in short, so that it cannot rot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.postgres, pytest.mark.timeout(400)]


def soak(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "soak.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=380,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_a_short_soak_loses_nothing() -> None:
    pytest.importorskip("pgserver", reason="the soak starts a PostgreSQL of its own")
    pytest.importorskip("redis", reason="the soak needs Redis")
    done = soak("--minutes", "0.25", "--workers", "8", "--kill-every", "3", "--seed", "5")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert "nothing lost, every rule holds" in done.stdout
    rates = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()[1:4]}
    assert set(rates) == {"claim", "tell", "heartbeat"}
    assert all(rate > 0 for rate in rates.values())
