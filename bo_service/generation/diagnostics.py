"""Can the model be trusted: leave-one-out figures, lengthscales and noise, from closed forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np

from bo_service.generation.acquisition import ClosedForm
from bo_service.generation.model_units import FEASIBLE, ModelData
from surrogates.numerics.exact_gp import Posterior


@runtime_checkable
class Explained(Protocol):
    """A model that says of its fit what can be said, as JSON."""

    def figures(self) -> Mapping[str, Any]: ...


Z_90: Final = 1.6448536269514722


def model_diagnostics(data: ModelData, models: Mapping[str, Any]) -> dict[str, Any]:
    """For each outcome its figures (model units), and the rungs its fit had to climb."""
    outcomes: dict[str, Any] = {}
    rungs: list[str] = []
    for outcome in data.outcomes:
        model = models[outcome.name]
        rungs += [f"{outcome.name}: {rung}" for rung in getattr(model, "rungs", [])]
        figures: dict[str, Any] = {"power": outcome.transform.power}
        if isinstance(model, ClosedForm):
            figures |= _figures(model.core, data.encoding.names)
        if isinstance(model, Explained):
            figures |= model.figures()
        if outcome.name != FEASIBLE:
            outcomes[outcome.name] = figures
    return {"outcomes": outcomes, "rungs": rungs}


def _figures(posterior: Posterior, names: tuple[str, ...]) -> dict[str, Any]:
    """Leave-one-out error, fit and calibration of one exact posterior; None where there is one observation."""
    figures: dict[str, Any] = {
        "lengthscales": {name: float(v) for name, v in zip(names, posterior.lengthscales, strict=True)},
        "noise_variance": posterior.noise,
    }
    if len(posterior.y) < 2:
        return figures
    mean, variance = posterior.leave_one_out()
    residual = posterior.y - mean
    spread = float(((posterior.y - posterior.y.mean()) ** 2).sum())
    log_density = -0.5 * (np.log(2 * np.pi * variance) + residual**2 / variance)
    return figures | {
        "loo_rmse": float(np.sqrt((residual**2).mean())),
        "loo_r2": 1.0 - float((residual**2).sum()) / spread if spread > 0 else None,
        "loo_log_density": float(log_density.mean()),
        "loo_coverage_90": float((np.abs(residual) <= Z_90 * np.sqrt(variance)).mean()),
    }
