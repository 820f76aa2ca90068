"""User units to model units and back: features for configurations, larger-is-better standardised outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bo_service.domain.proposal import Evaluated, Measurement, StudyView
from bo_service.domain.spec import Metric
from surrogates.encoding import Array, Encoding
from surrogates.numerics.output_transform import OutputTransform, fit_output_transform

FEASIBLE: Final = "feasible__"
"""Name of the outcome that says whether a trial could be evaluated; its double underscore no metric is refused."""

MIN_INFEASIBLE: Final = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """One modelled outcome: rows of the features it was observed at, and its values in model units."""

    name: str
    sign: float
    """+1 where larger is better or the metric is only bounded, -1 where smaller is better."""
    rows: NDArray[np.intp]
    """(n,), indices of the feature rows that have a value"""
    values: Array
    """(n,), model units"""
    variances: Array | None
    """(n,), known noise variances, model units; None where no standard error was reported"""
    transform: OutputTransform

    def bound(self, value: float) -> float:
        """A bound in user units as one in model units (on the signed outcome)."""
        return float(self.transform(np.array([self.sign * value]))[0])

    def user_units(self, mean: Array, sd: Array) -> list[Measurement]:
        """Predictions as user values with standard deviations."""
        centre, spread = self.transform.predicted(mean, sd)
        return [
            Measurement(value=float(self.sign * c), sem=float(s)) for c, s in zip(centre, spread, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class ModelData:
    """Everything the models see."""

    encoding: Encoding
    features: Array
    """(n, d): evaluated trials first, then infeasible ones"""
    outcomes: tuple[Outcome, ...]

    def outcome(self, name: str) -> Outcome:
        return next(outcome for outcome in self.outcomes if outcome.name == name)


def modelled_metrics(view: StudyView) -> list[Metric]:
    """The metrics a model is needed for: objectives and bounded ones."""
    return [m for m in view.spec.metrics if m.is_objective or m.lower is not None or m.upper is not None]


def model_data(view: StudyView, evaluated: Sequence[Evaluated], *, with_power: bool) -> ModelData | None:
    """The evaluated trials (a subset of the view's) in model units; None where an outcome has no value at all."""
    encoding = Encoding(view.spec.space)
    features = encoding.encode([e.parameters for e in evaluated])
    outcomes = []
    for metric in modelled_metrics(view):
        outcome = _outcome(metric, [e.measurements for e in evaluated], with_power=with_power)
        if outcome is None:
            return None
        outcomes.append(outcome)
    if len(view.infeasible) >= MIN_INFEASIBLE:
        bad = encoding.encode(view.infeasible[-len(evaluated) - 20 :])
        outcomes.append(_feasibility(len(features), len(bad)))
        features = np.concatenate([features, bad])
    return ModelData(encoding, features, tuple(outcomes))


def _outcome(
    metric: Metric, rows: Sequence[Mapping[str, Measurement]], *, with_power: bool
) -> Outcome | None:
    sign = -1.0 if metric.goal == "minimize" else 1.0
    present = [(i, row[metric.name]) for i, row in enumerate(rows) if metric.name in row]
    if not present:
        return None
    indices = np.array([i for i, _ in present])
    signed = np.array([sign * m.value for _, m in present])
    transform = fit_output_transform(signed, with_power=with_power)
    sems = np.array([np.nan if m.sem is None else m.sem for _, m in present])
    variances = None
    if not np.all(np.isnan(sems)):
        known = transform.variances(np.nan_to_num(sems, nan=0.0), signed)
        # a value without standard error is taken to be as noisy as a typical one with
        variances = np.where(np.isnan(sems), np.median(known[~np.isnan(sems)]), known)
        variances = np.clip(np.nan_to_num(variances, nan=1.0, posinf=1e2), 0.0, 1e2)
    return Outcome(metric.name, sign, indices, transform(signed), variances, transform)


def _feasibility(n_good: int, n_bad: int) -> Outcome:
    """1 where a trial could be evaluated and 0 where not; a regression on the labels, thresholded at one half."""
    identity = OutputTransform(0.0, 1.0, None, 0.0, 1.0)
    values = np.r_[np.ones(n_good), np.zeros(n_bad)]
    return Outcome(FEASIBLE, 1.0, np.arange(n_good + n_bad), values, None, identity)
