"""The scores of surrogates: a failed fit is told, and tried again by the next run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


def run(results: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "surrogate_scores.py"), "--results", str(results)]
    small = ["--problems", "branin", "--sizes", "20", "--seeds", "1"]
    return subprocess.run(
        [*command, *small, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_a_fit_that_takes_too_long_is_told_and_tried_again(tmp_path) -> None:
    results = tmp_path / "scores.jsonl"
    late = run(results, "--limit-seconds", "0.01")
    assert late.returncode == 0, late.stderr
    assert "| 20 | gp | 0 (1 failed: not done after 0.01 s) | - |" in late.stdout
    done = run(results)
    assert done.returncode == 0, done.stderr
    assert "| 20 | gp | 1 | 0." in done.stdout
    again = run(results)
    assert (again.stdout, again.stderr) == (done.stdout, "")
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert ["error" in r for r in records] == [True, False]
    assert records[1]["megabytes"] >= 0


def test_a_surrogate_without_a_model_or_with_unknown_options_is_refused(tmp_path) -> None:
    assert "no model" in run(tmp_path / "a", "--surrogates", "sobol").stderr
    assert "nowhere" in run(tmp_path / "b", "--surrogates", "nowhere").stderr
    assert "no_option" in run(tmp_path / "c", "--surrogates", 'gp{"no_option": 1}').stderr
