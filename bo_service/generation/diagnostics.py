"""Can the model be trusted: leave-one-out figures, lengthscales and noise, from closed forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from bo_service.generation.acquisition import ClosedForm
from bo_service.generation.model_units import FEASIBLE, ModelData
from surrogates.numerics.exact_gp import Posterior
from surrogates.numerics.leave_one_out import leave_one_out_figures


@runtime_checkable
class Explained(Protocol):
    """A model that says of its fit what can be said, as JSON."""

    def figures(self) -> Mapping[str, Any]: ...


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
    """Hyperparameters of one exact posterior, and its leave-one-out figures."""
    figures: dict[str, Any] = {
        "lengthscales": {name: float(v) for name, v in zip(names, posterior.lengthscales, strict=True)},
        "noise_variance": posterior.noise,
    }
    return figures | leave_one_out_figures(posterior.y, *posterior.leave_one_out())
