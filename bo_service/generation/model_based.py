"""One model-based proposal through Ax: data to model units, fit by our dispatcher entry, search by our acquisition."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ax.adapter.torch import TorchAdapter
from ax.core.observation import ObservationFeatures
from ax.generators.torch.botorch_modular.generator import BoTorchGenerator
from botorch.models import ModelListGP
from botorch.utils.sampling import manual_seed

from bo_service.domain.proposal import Candidate, Evaluated, Measurement, ProposalRequest, StudyView
from bo_service.generation.acquisition import (
    CLOSED_FORM,
    FEASIBILITY,
    ClosedForm,
    SearchedAcquisition,
    SearchPlan,
)
from bo_service.generation.design import taken_keys
from bo_service.generation.diagnostics import model_diagnostics
from bo_service.generation.experiment import as_parameters, ax_experiment
from bo_service.generation.fit_state import dump_states, load_states
from bo_service.generation.model_units import FEASIBLE, ModelData, model_data
from bo_service.generation.plugged import surrogate_spec
from bo_service.generation.rows import EXACT, merits, rows_to_use
from surrogates.encoding import Array, Encoding
from surrogates.errors import FitDiverged
from surrogates.protocol import Plugin
from surrogates.search import Scored

logging.getLogger("ax").setLevel(logging.ERROR)

N_INCUMBENTS = 3
NOISY = 0.1
"""Learned noise variance (model units) from which a single objective counts as noisy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a rung of the ladder changes."""

    warm_state: bytes | None = None
    with_power: bool = True
    is_cautious: bool = False
    """Default options and strong noise: what survives odd data."""
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRun:
    """What came of it."""

    candidates: tuple[Candidate, ...]
    state: bytes | None
    diagnostics: Mapping[str, Any]
    device: str


def run_model(view: StudyView, request: ProposalRequest, *, plugin: Plugin, settings: Settings) -> ModelRun:
    """Fit and propose.

    Raises: FitDiverged and what Ax, BoTorch and linear algebra raise; the ladder knows them.
    """
    seed = int(np.random.SeedSequence((view.seed, view.data_version, 2)).generate_state(1)[0])
    rng = np.random.default_rng((view.seed, view.data_version, 3))
    used = rows_to_use(view, Encoding(view.spec.space), rng=rng, **row_limits(view, plugin))
    data = model_data(view, used, with_power=settings.with_power and _wants_power(view, settings))
    if data is None:
        raise FitDiverged("an objective or constraint was never observed")
    with manual_seed(seed):
        adapter = _fitted(view, data, plugin=plugin, settings=settings, seed=seed)
        found, name = _searched(view, request, used, data, adapter, rng=rng)
    models = models_by_outcome(adapter, data)
    diagnostics = model_diagnostics(data, models) | {
        "n_observations": len(view.evaluated),
        "n_used": len(used),
        "acquisition": name,
        "threads": torch.get_num_threads(),
        "exhausted": len(found) < request.count,
    }
    return ModelRun(
        candidates=_candidates(found, data, models, generator=f"{plugin.name}:{name}"),
        state=dump_states({outcome: model.state() for outcome, model in models.items()}),
        diagnostics=diagnostics,
        device=_device_of(models),
    )


def row_limits(view: StudyView, plugin: Plugin) -> dict[str, int]:
    """How many observations the surrogate gets at most, and how many of a neighbourhood.

    Its options `exact_points` and `local_points` where it has them, else what it is made for.
    """
    chosen = view.spec.surrogate
    options = plugin.options.model_validate(chosen.options if chosen.name == plugin.name else {})
    n_exact = getattr(options, "exact_points", plugin.abilities.max_sensible_observations or EXACT)
    return {"n_exact": n_exact, "n_local": getattr(options, "local_points", max(n_exact // 2, 1))}


def _device_of(models: Mapping[str, Any]) -> str:
    """Where the models lie, which need not be where the worker would have had them."""
    found = {str(parameter.device) for model in models.values() for parameter in model.parameters()}
    return "+".join(sorted(found)) or "cpu"


def _wants_power(view: StudyView, settings: Settings) -> bool:
    return (
        not settings.is_cautious and view.spec.surrogate.options.get("output", "yeo-johnson") == "yeo-johnson"
    )


def _fitted(
    view: StudyView, data: ModelData, *, plugin: Plugin, settings: Settings, seed: int
) -> TorchAdapter:
    options = {} if settings.is_cautious else view.spec.surrogate.options
    if settings.is_cautious and "noise" in plugin.options.model_fields:
        options = {"noise": "strong"}
    spec = surrogate_spec(
        plugin,
        data.encoding,
        options=plugin.options.model_validate(options),
        warm=load_states(settings.warm_state),
        outcomes=tuple(outcome.name for outcome in data.outcomes),
        device=settings.device,
        seed=seed,
    )
    generator = BoTorchGenerator(surrogate_spec=spec, acquisition_class=SearchedAcquisition)
    return TorchAdapter(
        experiment=ax_experiment(data, view.spec),
        generator=generator,
        transforms=[],
        expand_model_space=False,
    )


def models_by_outcome(adapter: TorchAdapter, data: ModelData) -> dict[str, Any]:
    """The fitted model of each outcome, by name."""
    generator: Any = adapter.generator
    surrogate = generator.surrogate
    model = surrogate.model
    if isinstance(model, ModelListGP) or hasattr(model, "models"):
        return dict(zip(surrogate.outcomes, model.models, strict=True))
    return {data.outcomes[0].name: model}


def _searched(
    view: StudyView,
    request: ProposalRequest,
    used: list[Evaluated],
    data: ModelData,
    adapter: TorchAdapter,
    *,
    rng: np.random.Generator,
) -> tuple[list[Scored], str]:
    pending = data.encoding.encode(view.pending)
    name = choose_acquisition(view, request, data, models_by_outcome(adapter, data))
    plan = SearchPlan(
        encoding=data.encoding,
        acquisition=name,
        rng=rng,
        incumbents=_incumbents(view, used, data),
        taken=taken_keys(view),
        fixed=request.fixed,
    )
    generator: Any = adapter.generator
    generator.acquisition_options = {"plan": plan}
    features = [ObservationFeatures(parameters=as_parameters(row)) for row in pending]
    adapter.gen(
        n=request.count,
        pending_observations={o.name: list(features) for o in data.outcomes} if features else None,
    )
    return plan.found, name


def choose_acquisition(
    view: StudyView, request: ProposalRequest, data: ModelData, models: Mapping[str, Any]
) -> str:
    """The study's choice, or by what is asked: closed-form log EI where it covers the case.

    While nothing observed is feasible, the probability of feasibility is searched.
    `logei` falls back to `qlogei` where something is pending, several are wanted, or an outcome is bounded.
    """
    spec = view.spec
    several = len(spec.objectives) > 1
    if (spec.acquisition == "auto" or several) and spec.outcome_constraints and merits(view).max() < 0:
        return FEASIBILITY
    # BoTorch takes the incumbents of these two from one table, in which every row has every outcome
    is_ragged = len({len(outcome.rows) for outcome in data.outcomes}) > 1
    if several:
        return "qlogehvi" if spec.acquisition == "qlogehvi" and not is_ragged else "qlognehvi"
    model = models[spec.objectives[0].name]
    is_bounded = bool(spec.outcome_constraints) or any(o.name == FEASIBLE for o in data.outcomes)
    is_alone = not view.pending and request.count == 1 and not is_bounded
    has_form = isinstance(model, ClosedForm)
    if spec.acquisition == "auto":
        outcome = data.outcome(spec.objectives[0].name)
        is_noisy = outcome.variances is not None or float(model.noise_variance()[0]) > NOISY
        return CLOSED_FORM if is_alone and has_form and not is_noisy else "qlognei"
    if spec.acquisition == CLOSED_FORM and not (is_alone and has_form):
        return "qlognei" if is_ragged else "qlogei"
    return "qlognei" if spec.acquisition == "qlogei" and is_ragged else spec.acquisition


def _incumbents(view: StudyView, used: list[Evaluated], data: ModelData) -> Array:
    numbers = {e.number: i for i, e in enumerate(used)}
    merit = merits(view)
    order = [
        numbers[view.evaluated[i].number]
        for i in np.argsort(-merit, kind="stable")
        if view.evaluated[i].number in numbers
    ]
    return data.features[order[:N_INCUMBENTS]]


def _is_finite(measurement: Measurement) -> bool:
    return bool(np.isfinite(measurement.value) and np.isfinite(measurement.sem or 0.0))


def _candidates(
    found: list[Scored], data: ModelData, models: Mapping[str, Any], *, generator: str
) -> tuple[Candidate, ...]:
    if not found:
        return ()
    rows = torch.as_tensor(np.stack([s.features for s in found]))
    predictions: list[dict[str, Measurement]] = [{} for _ in found]
    for outcome in data.outcomes:
        with torch.no_grad():
            posterior = models[outcome.name].posterior(rows)
        mean = posterior.mean[:, 0].numpy()
        sd = posterior.variance[:, 0].clamp_min(0).sqrt().numpy()
        for prediction, measurement in zip(predictions, outcome.user_units(mean, sd), strict=True):
            if _is_finite(measurement) and outcome.name != FEASIBLE:
                prediction[outcome.name] = measurement
    return tuple(
        Candidate(
            parameters=s.configuration,
            generator=generator,
            acquisition_value=s.value if np.isfinite(s.value) else None,
            predictions=prediction,
        )
        for s, prediction in zip(found, predictions, strict=True)
    )
