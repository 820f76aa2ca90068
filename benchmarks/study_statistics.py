"""What the runs of a study say: curves after the design, areas under them, and paired tests over seeds.

A loss is smaller-is-better: the simple regret where the optimum is known, what is missing of the true front's
hypervolume where that is known, else the best value or hypervolume with its sign turned. The area under a curve (AUC)
is the mean loss from the end of the design to the last evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from problems import Problem, find
from scipy.stats import wilcoxon

Array = NDArray[np.float64]
Record = Mapping[str, Any]
Measure = Literal["final", "auc"]

BASELINES: Final = ("gp", "sobol")


@dataclass(frozen=True, slots=True)
class Curves:
    """The runs of one problem that are as long as asked for."""

    problem: Problem
    by_label: Mapping[str, Mapping[int, Array]]
    """Surrogate -> seed -> best so far (steps + 1,), user units, from the end of the design on."""
    n_evaluations: int
    n_short: int
    """Runs left out because they are shorter."""

    def losses(self, label: str) -> Mapping[int, Array]:
        """Seed -> loss (steps + 1,)."""
        return {seed: loss(self.problem, best) for seed, best in self.by_label[label].items()}

    def measured(self, label: str, measure: Measure) -> dict[int, float]:
        """Seed -> final loss or area."""
        found = self.losses(label).items()
        return {seed: float(curve[-1] if measure == "final" else curve.mean()) for seed, curve in found}


def loss(problem: Problem, best: Array) -> Array:
    """Smaller is better, whatever the problem."""
    sign = problem.objectives[0].sign if len(problem.objectives) == 1 else 1.0
    return -sign * best if problem.best is None else sign * (problem.best - best)


def curves(records: Sequence[Record], *, iterations: int | None = None) -> list[Curves]:
    """By problem; cut to the cap, or to the longest run there is."""
    found = []
    for name in dict.fromkeys(str(r["problem"]) for r in records):
        problem = find(name)
        own = [r for r in records if r["problem"] == name]
        longest = max(r["n_evaluations"] for r in own)
        n = longest if iterations is None else min(longest, problem.n_evaluations(iterations))
        by_label: dict[str, dict[int, Array]] = {}
        for record in own:
            if record["n_evaluations"] >= n:
                best = np.array(record["best"][problem.n_initial - 1 : n])
                by_label.setdefault(record["surrogate"], {})[record["seed"]] = best
        n_short = sum(r["n_evaluations"] < n for r in own)
        found.append(Curves(problem, by_label, n, n_short))
    return found


def mean_and_error(values: Sequence[float] | Array) -> tuple[float, float]:
    """Mean and its standard error; NaN for the error of a single value."""
    array = np.asarray(values, dtype=float)
    error = array.std(ddof=1) / np.sqrt(len(array)) if len(array) > 1 else np.nan
    return float(array.mean()), float(error)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One surrogate against a baseline on one problem, seed by seed."""

    problem: str
    label: str
    baseline: str
    measure: Measure
    wins: int
    ties: int
    losses: int
    p: float
    """Of Wilcoxon's signed-rank test, two-sided."""
    adjusted: float = float("nan")
    """The same after Holm's correction over all comparisons with this baseline by this measure."""


def comparison(found: Curves, label: str, baseline: str, measure: Measure) -> Comparison | None:
    """None where no seed was run with both."""
    mine, theirs = found.measured(label, measure), found.measured(baseline, measure)
    shared = sorted(mine.keys() & theirs.keys())
    if not shared:
        return None
    difference = np.array([mine[seed] - theirs[seed] for seed in shared])
    p = float(wilcoxon(difference).pvalue) if np.any(difference != 0) else 1.0
    return Comparison(
        problem=found.problem.name,
        label=label,
        baseline=baseline,
        measure=measure,
        wins=int(np.sum(difference < 0)),
        ties=int(np.sum(difference == 0)),
        losses=int(np.sum(difference > 0)),
        p=p,
    )


def comparisons(found: Sequence[Curves], baseline: str, measure: Measure) -> list[Comparison]:
    """Every other surrogate against the baseline on every problem, with corrected p-values."""
    raw = [
        compared
        for one in found
        if baseline in one.by_label
        for label in one.by_label
        if label != baseline and (compared := comparison(one, label, baseline, measure)) is not None
    ]
    adjusted = holm([c.p for c in raw])
    return [replace(c, adjusted=a) for c, a in zip(raw, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm 1979, "A simple sequentially rejective multiple test procedure": step-down, in the order given."""
    order = np.argsort(p_values)
    scaled = np.array(p_values)[order] * np.arange(len(p_values), 0, -1)
    stepped = np.minimum(np.maximum.accumulate(scaled), 1.0)
    adjusted = np.empty(len(p_values))
    adjusted[order] = stepped
    return [float(p) for p in adjusted]
