"""Every surrogate proposes through Ax: outcomes, constraints, pending points, batches, mixed spaces, mixtures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from safetensors.torch import load

from bo_service.domain.proposal import Evaluated, Measurement, Proposal, ProposalRequest, StudyView
from bo_service.domain.spec import StudySpec
from bo_service.generation.strategy import propose
from surrogates.protocol import DRAWS
from surrogates.registry import plugins
from surrogates.sampling import space_filling

SMALL: dict[str, dict[str, Any]] = {
    "auto": {"candidates": ["gp", "student-t"], "n_folds": 2},
    "hmc": {"width": 16, "depth": 1, "n_warmup": 40, "n_draws": 32, "n_members": 64, "max_r_hat": 10.0},
    "ensemble": {"width": 32, "max_steps": 20, "n_members": 32},
    "sgmcmc": {"width": 32, "depth": 1, "n_steps": 150, "n_members": 64},
    "dkl": {"n_members": 2, "n_steps": 20},
    "neural-linear": {"width": 16, "depth": 1, "n_members": 2, "n_steps": 20},
    "laplace": {"width": 16, "n_members": 2},
}
"""Enough to propose with; how well is another test's business."""

NAMES = sorted(name for name, plugin in plugins().items() if plugin.abilities.needs_model)

NUMBERS = [{"type": "float", "name": f"x{i}", "low": 0, "high": 1} for i in range(4)]
MIXED = [
    {"type": "float", "name": "lr", "low": 1e-5, "high": 0.1, "scale": "log"},
    {"type": "categorical", "name": "model", "choices": ["a", "b", "c"]},
    {"type": "int", "name": "k", "low": 1, "high": 9, "active_if": {"parent": "model", "values": ["a"]}},
    {"type": "mixture", "name": "mix", "components": [{"name": n} for n in "uvw"]},
]
LOSS = {"name": "loss", "goal": "minimize"}
BOUND = {"name": "size", "goal": "constraint", "upper": 2.5}


def sphere(p: Any) -> dict[str, float]:
    values = list(p.values())
    return {
        "loss": sum((v - 0.3) ** 2 for v in values),
        "other": sum((v - 0.7) ** 2 for v in values),
        "size": sum(values),
    }


def recipe(p: Any) -> dict[str, float]:
    return {
        "loss": 10 * p["lr"] + (p["model"] == "b") + p["mix"]["u"] + 0.1 * p.get("k", 0),
        "size": p["mix"]["v"],
    }


def view(
    name: str,
    metrics: list[dict[str, Any]],
    *,
    parameters: list[dict[str, Any]] = NUMBERS,
    function: Callable[[Any], dict[str, float]] = sphere,
    n: int = 16,
    n_pending: int = 0,
    sem: float | None = None,
) -> StudyView:
    spec = StudySpec.model_validate(
        {
            "name": "s",
            "parameters": parameters,
            "metrics": metrics,
            "surrogate": {"name": name, "options": SMALL.get(name, {})},
        }
    )
    points = space_filling(spec.space, n + n_pending, seed=1)
    wanted = {metric["name"] for metric in metrics}
    evaluated = tuple(
        Evaluated(
            number=i,
            parameters=p,
            measurements={k: Measurement(value=v, sem=sem) for k, v in function(p).items() if k in wanted},
        )
        for i, p in enumerate(points[:n])
    )
    return StudyView(
        spec=spec,
        seed=1,
        data_version=n,
        evaluated=evaluated,
        pending=tuple(points[n:]),
        n_started=n + n_pending,
    )


def ask(of: StudyView, name: str, *, count: int = 1, warm: bytes | None = None) -> Proposal:
    """A proposal made by the surrogate itself, without a step of the ladder."""
    proposal = propose(of, ProposalRequest(count=count), warm_state=warm)
    assert proposal.fit.surrogate == name
    assert len(proposal.candidates) == count
    for candidate in proposal.candidates:
        assert candidate.fallback_reason is None
        assert candidate.generator.startswith(f"{name}:")
        assert of.spec.space.canonical(candidate.parameters) == candidate.parameters
        assert all(math.isfinite(m.value) for m in candidate.predictions.values())
    return proposal


@pytest.mark.parametrize("name", NAMES)
def test_a_bounded_mixed_study_with_pending_points_is_served(name: str) -> None:
    of = view(name, [LOSS, BOUND | {"upper": 0.9}], parameters=MIXED, function=recipe, n_pending=2)
    proposal = ask(of, name, count=2)
    assert {"loss", "size"} <= set(proposal.candidates[0].predictions)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("metrics", "n_pending", "count", "sem"),
    [
        ([LOSS], 3, 3, 0.05),
        ([LOSS, {"name": "other", "goal": "minimize"}, BOUND], 1, 2, None),
    ],
    ids=["noisy batch beside pending points", "two bounded objectives beside a pending point"],
)
def test_every_kind_of_study_is_served(
    name: str, metrics: list[dict[str, Any]], n_pending: int, count: int, sem: float | None
) -> None:
    ask(view(name, metrics, n_pending=n_pending, sem=sem), name, count=count)


def test_an_average_of_surrogates_serves_several_objectives() -> None:
    of = view("auto", [LOSS, {"name": "other", "goal": "minimize"}], n=20, n_pending=1)
    options = {
        "combine": "average",
        "candidates": ["gp", "ensemble"],
        "candidate_options": {"ensemble": SMALL["ensemble"]},
        "n_folds": 2,
    }
    averaged = of.spec.model_copy(
        update={"surrogate": of.spec.surrogate.model_copy(update={"options": options})}
    )
    proposal = ask(replace(of, spec=averaged), "auto", count=2)
    outcomes = proposal.fit.diagnostics["outcomes"]
    assert all("log_density" in outcomes[name]["choice"] for name in ("loss", "other"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_stored_state_starts_the_next_fit_and_holds_no_members(name: str) -> None:
    stored = ask(view(name, [LOSS]), name).fit.state
    assert stored is not None
    assert not [key for key in load(stored) if key.partition("/")[2].startswith(DRAWS)]
    ask(view(name, [LOSS], n=18), name, warm=stored)


def test_a_fit_that_is_rejected_is_answered_by_the_gaussian_process_which_says_so() -> None:
    of = view("hmc", [LOSS])
    strict = StudySpec.model_validate(
        of.spec.model_dump() | {"surrogate": {"name": "hmc", "options": SMALL["hmc"] | {"max_r_hat": 1.0001}}}
    )
    proposal = propose(
        StudyView(**{**{f: getattr(of, f) for f in of.__dataclass_fields__}, "spec": strict}),
        ProposalRequest(),
        warm_state=None,
    )
    assert proposal.fit.surrogate == "gp"
    assert "R-hat" in (proposal.candidates[0].fallback_reason or "")
    assert [rung.partition(":")[0] for rung in proposal.fit.diagnostics["rungs"]] == ["as configured"]
