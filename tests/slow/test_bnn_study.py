"""The study runs through a real service, and goes on where it was stopped."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import bnn_study
from arms import arm
from lines import read_records
from problems import Objective, Problem
from problems.problem import box

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


class Bowl:
    """A tiny problem that can be made to stop the run."""

    def __init__(self) -> None:
        self.n_evaluations = 0
        self.stop_at: int | None = None
        self.problem = Problem(
            name="bowl",
            summary="a bowl, 2 floats",
            parameters=box([(-1, 2), (-1, 2)]),
            objectives=(Objective(name="value", goal="minimize"),),
            n_initial=4,
            batch=2,
            iterations=3,
            evaluate=self.evaluate,
            best=0.0,
        )

    def evaluate(self, parameters: Any, seed: int) -> dict[str, float]:
        del seed
        self.n_evaluations += 1
        if self.n_evaluations == self.stop_at:
            raise KeyboardInterrupt
        return {"value": parameters["x0"] ** 2 + parameters["x1"] ** 2}


def test_a_stopped_study_goes_on_where_it_was(monkeypatch, tmp_path) -> None:
    bowl = Bowl()
    monkeypatch.setattr(bnn_study, "find", {"bowl": bowl.problem}.__getitem__)
    # the service started here sets it, and it shall be as before afterwards
    monkeypatch.setenv("BO_HOME", str(tmp_path))
    results = tmp_path / "results.jsonl"
    options = Namespace(
        problems=["bowl"],
        surrogates=[arm("gp"), arm("sobol")],
        seeds=[0],
        iterations=2,
        threads=1,
        results=results,
    )
    bowl.stop_at = 12
    with pytest.raises(KeyboardInterrupt):
        bnn_study.run_all(options)
    assert [(r["surrogate"], r["n_evaluations"]) for r in read_records(results)] == [("gp", 8)]

    bowl.n_evaluations, bowl.stop_at = 0, None
    bnn_study.run_all(options)
    assert bowl.n_evaluations == 8
    model, baseline = read_records(results)
    assert model["values"][:4] == baseline["values"][:4]
    assert model["values"][4:] != baseline["values"][4:]
    assert model["generators"]["user"] == 4
    assert sum(n for name, n in model["generators"].items() if name.startswith("gp:")) == 4
    assert model["n_fits"] == 2, "one fit a batch, none for half a batch"
    assert not model["fallbacks"]
    assert model["best"] == sorted(model["best"], reverse=True)
    assert model["best"][-1] < baseline["best"][3]

    bnn_study.run_all(options)
    assert bowl.n_evaluations == 8, "nothing was left to run"
    assert len(read_records(results)) == 2
