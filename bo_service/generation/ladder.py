"""The retry ladder around a fit: as configured, restarted without the power transform, one simple model, no model."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from typing import Any, Final

import numpy as np
from ax.exceptions.core import AxError
from botorch.exceptions.errors import BotorchError
from gpytorch.utils.errors import NanError, NotPSDError

from bo_service.domain.proposal import Candidate, FitRecord, Proposal, ProposalRequest, StudyView
from bo_service.generation.design import FALLBACK, design_candidates
from bo_service.generation.model_based import ModelRun, Settings, run_model
from surrogates.errors import FitDiverged, FitRejected, NotEnoughData
from surrogates.protocol import Plugin
from surrogates.registry import plugin as find_plugin

NUMERICAL: Final = (
    FitDiverged,
    NotEnoughData,
    BotorchError,
    AxError,
    NanError,
    NotPSDError,
    np.linalg.LinAlgError,
    FloatingPointError,
    # torch and SciPy report numerical trouble by these two as well
    RuntimeError,
    ValueError,
)
"""What may go wrong in a fit without anybody's fault."""

SIMPLE: Final = "gp"


def climb(
    view: StudyView, request: ProposalRequest, *, plugin: Plugin, warm_state: bytes | None, started: float
) -> Proposal:
    """The first rung that holds; each failed one is recorded in the diagnostics, the last needs no model."""
    rungs: list[tuple[str, Plugin, Settings]] = [
        ("as configured", plugin, Settings(warm_state=warm_state, device=request.device)),
        ("restart", plugin, Settings(warm_state=None, with_power=False, is_cautious=True)),
    ]
    if plugin.name != SIMPLE:
        rungs.append(("simpler model", find_plugin(SIMPLE), Settings(with_power=False, is_cautious=True)))
    failures: list[str] = []
    rejected: str | None = None
    for name, rung_plugin, settings in rungs:
        if rung_plugin.name == rejected:
            # a minute of sampling whose figures are bad has no better second minute
            continue
        try:
            with warnings.catch_warnings():
                # jitter and convergence are recorded as rungs and figures; the libraries' words help nobody
                warnings.simplefilter("ignore")
                run = run_model(view, request, plugin=rung_plugin, settings=settings)
        except NUMERICAL as error:
            failures.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
            rejected = rung_plugin.name if isinstance(error, FitRejected) else rejected
            continue
        return _proposal(run, rung_plugin, failures, started=started)
    return _without_model(view, request, plugin, failures, started=started)


def _proposal(run: ModelRun, plugin: Plugin, failures: list[str], *, started: float) -> Proposal:
    reason = f"ladder: {failures[-1]}" if failures else None
    candidates = tuple(replace(c, fallback_reason=reason) if reason else c for c in run.candidates)
    diagnostics: dict[str, Any] = {
        **run.diagnostics,
        "rungs": [*failures, *run.diagnostics.get("rungs", [])],
    }
    if plugin.abilities.queue == "gpu" and run.device == "cpu":
        diagnostics |= {"slower": "made for a GPU, fitted on a CPU"}
    return Proposal(
        candidates=candidates,
        fit=FitRecord(
            surrogate=plugin.name,
            state=run.state,
            diagnostics=diagnostics,
            seconds=time.perf_counter() - started,
            device=run.device,
        ),
    )


def _without_model(
    view: StudyView, request: ProposalRequest, plugin: Plugin, failures: list[str], *, started: float
) -> Proposal:
    reason = f"ladder: {failures[-1]}"
    labelled = replace(request, fallback_reason=reason)
    candidates: tuple[Candidate, ...] = design_candidates(view, labelled, generator=FALLBACK)
    return Proposal(
        candidates=candidates,
        fit=FitRecord(
            surrogate=plugin.name,
            state=None,
            diagnostics={"rungs": failures, "n_observations": len(view.evaluated)},
            seconds=time.perf_counter() - started,
        ),
    )
