"""The examples run as their reader would run them, with small budgets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(service, script: str, *options: str) -> str:
    environment = os.environ | {"BO_URL": service.url, "BO_API_KEY": service.key}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("tune_digits.py", "best log loss "),
        ("mix_data.py", "best accuracy 0."),
        pytest.param("accuracy_and_size.py", "accuracy  nodes", marks=pytest.mark.slow),
    ],
)
def test_an_example_runs(service, script: str, says: str) -> None:
    assert says in run(service, script, "--trials", "8", "--name", f"{script}-test")


@pytest.mark.slow
def test_the_demo_runs_from_nothing_and_leaves_its_data(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py"), "--trials", "8", "--data-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "random search, same budget, same run" in done.stdout
    (home,) = tmp_path.iterdir()
    assert (home / "bo.db").stat().st_size > 0
