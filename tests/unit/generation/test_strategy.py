"""Proposals: which generator answers, that they are reproducible, and that odd data stop nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from bo_service.domain.proposal import Evaluated, Measurement, Proposal, ProposalRequest, StudyView
from bo_service.domain.spec import StudySpec
from bo_service.generation.model_based import row_limits
from bo_service.generation.strategy import propose
from surrogates.registry import plugin
from surrogates.sampling import space_filling

X4 = [{"type": "float", "name": f"x{i}", "low": 0, "high": 1} for i in range(4)]
MIXED = [
    {"type": "float", "name": "lr", "low": 1e-5, "high": 0.1, "scale": "log"},
    {"type": "categorical", "name": "model", "choices": ["a", "b", "c"]},
    {"type": "int", "name": "k", "low": 1, "high": 9, "active_if": {"parent": "model", "values": ["a"]}},
    {"type": "mixture", "name": "mix", "components": [{"name": n} for n in "uvw"]},
]
LOSS = [{"name": "loss", "goal": "minimize"}]


def make_spec(parameters: list[dict[str, Any]], metrics: Any = LOSS, **more: Any) -> StudySpec:
    return StudySpec.model_validate({"name": "s", "parameters": parameters, "metrics": metrics, **more})


def make_view(spec: StudySpec, f, n: int, *, n_pending: int = 0, **more: Any) -> StudyView:
    points = space_filling(spec.space, n + n_pending, seed=1)
    evaluated = tuple(
        Evaluated(number=i, parameters=p, measurements={k: Measurement(value=v) for k, v in f(p).items()})
        for i, p in enumerate(points[:n])
    )
    return StudyView(
        spec=spec,
        seed=1,
        data_version=n,
        evaluated=evaluated,
        pending=tuple(points[n:]),
        n_started=n + n_pending,
        **more,
    )


def sphere(p: Any) -> dict[str, float]:
    return {"loss": sum((v - 0.3) ** 2 for v in p.values())}


def ask(view: StudyView, warm: bytes | None = None, **request: Any) -> Proposal:
    proposal = propose(view, ProposalRequest(**request), warm_state=warm)
    space = view.spec.space
    known = {space.key(e.parameters) for e in view.evaluated} | {space.key(p) for p in view.pending}
    keys = [space.key(c.parameters) for c in proposal.candidates]
    assert len(set(keys)) == len(keys)
    assert not set(keys) & known
    for candidate in proposal.candidates:
        assert space.canonical(candidate.parameters) == candidate.parameters
        assert candidate.acquisition_value is None or math.isfinite(candidate.acquisition_value)
    return proposal


def test_the_initial_design_is_the_centre_and_then_sobol_points() -> None:
    proposal = ask(StudyView(spec=make_spec(X4), seed=1, data_version=0), count=6)
    assert [c.generator for c in proposal.candidates] == ["initial:centre"] + ["initial:sobol"] * 5
    assert proposal.candidates[0].parameters == dict.fromkeys(("x0", "x1", "x2", "x3"), 0.5)


def test_the_design_goes_on_where_it_stopped() -> None:
    spec = make_spec(X4)
    whole = ask(StudyView(spec=spec, seed=1, data_version=0), count=6).candidates
    rest = ask(StudyView(spec=spec, seed=1, data_version=0, design_index=2), count=4).candidates
    assert [c.parameters for c in rest] == [c.parameters for c in whole[2:]]


@pytest.mark.parametrize(
    ("metrics", "f", "n_pending", "count", "generator"),
    [
        (LOSS, sphere, 0, 1, "gp:logei"),
        (LOSS, sphere, 2, 1, "gp:qlognei"),
        (LOSS, sphere, 0, 3, "gp:qlognei"),
        (
            [{"name": "a", "goal": "maximize"}, {"name": "c", "goal": "constraint", "upper": 1.5}],
            lambda p: {"a": sum(p.values()), "c": sum(p.values())},
            0,
            1,
            "gp:qlognei",
        ),
        (
            [{"name": "a", "goal": "maximize", "threshold": 0.1}, {"name": "b", "goal": "minimize"}],
            lambda p: {"a": p["x0"], "b": p["x0"] ** 2 + p["x1"]},
            1,
            2,
            "gp:qlognehvi",
        ),
    ],
)
def test_the_acquisition_follows_what_is_asked(metrics, f, n_pending, count, generator) -> None:
    view = make_view(make_spec(X4, metrics), f, 12, n_pending=n_pending)
    proposal = ask(view, count=count)
    assert [c.generator for c in proposal.candidates] == [generator] * count
    assert all(c.fallback_reason is None for c in proposal.candidates)
    again = ask(view, count=count)
    assert again.candidates == proposal.candidates


@pytest.mark.parametrize("acquisition", ["logei", "qlogei", "qlognei", "qucb"])
def test_the_users_choice_of_acquisition_is_kept(acquisition: str) -> None:
    view = make_view(make_spec(X4, acquisition=acquisition), sphere, 10)
    assert ask(view).candidates[0].generator == f"gp:{acquisition}"


def test_mixed_conditional_and_mixture_parameters_are_searched_together() -> None:
    def f(p: Any) -> dict[str, float]:
        return {
            "loss": math.log10(p["lr"]) ** 2 + p.get("k", 4) / 9 + (p["model"] == "b") + p["mix"]["u"] ** 2
        }

    view = make_view(make_spec(MIXED, constraints=["mix.u + 2*mix.v <= 1"]), f, 14)
    proposal = ask(view, count=2)
    assert all(c.generator.startswith("gp:") for c in proposal.candidates)
    for candidate in proposal.candidates:
        assert abs(sum(candidate.parameters["mix"].values()) - 1) <= 1e-9


def test_fixed_values_are_kept_by_the_model() -> None:
    view = make_view(make_spec(MIXED), lambda p: {"loss": math.log10(p["lr"])}, 10)
    for candidate in ask(view, count=2, fixed={"model": "a", "k": 3}).candidates:
        assert (candidate.parameters["model"], candidate.parameters["k"]) == ("a", 3)


HARD = {
    "constant": lambda _: 3.0,
    "tiny": lambda p: 1e-300 * p["x0"],
    "huge": lambda p: 1e12 * p["x0"],
    "vast": lambda p: 1e300 * (p["x0"] - 0.5),
    "spike": lambda p: 1e12 if p["x0"] > 0.9 else p["x1"],
    "zero": lambda _: 0.0,
    "two values": lambda p: float(p["x0"] > 0.5),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("n", [1, 2, 12])
def test_odd_values_stop_nothing(name: str, n: int) -> None:
    view = make_view(make_spec(X4, initial={"size": 1}), lambda p: {"loss": HARD[name](p)}, n)
    (candidate,) = ask(view).candidates
    assert candidate.fallback_reason is None
    assert candidate.generator.startswith("gp:" if n > 1 else "initial:")


def test_one_point_measured_again_and_again_stops_nothing() -> None:
    spec = make_spec(X4, initial={"size": 1})
    point = dict.fromkeys(("x0", "x1", "x2", "x3"), 0.25)
    evaluated = tuple(
        Evaluated(number=i, parameters=point, measurements={"loss": Measurement(value=float(i))})
        for i in range(9)
    )
    view = StudyView(spec=spec, seed=1, data_version=9, evaluated=evaluated, n_started=9)
    (candidate,) = ask(view).candidates
    assert candidate.parameters != point
    assert candidate.generator.startswith("gp:"), candidate.fallback_reason


def test_repeats_among_other_points_teach_the_model_too() -> None:
    spec = make_spec(X4)
    points = space_filling(spec.space, 10, seed=1) * 2
    evaluated = tuple(
        Evaluated(
            number=i, parameters=p, measurements={"loss": Measurement(value=sphere(p)["loss"] + 0.01 * i)}
        )
        for i, p in enumerate(points)
    )
    view = StudyView(spec=spec, seed=1, data_version=20, evaluated=evaluated, n_started=20)
    proposal = ask(view)
    assert proposal.candidates[0].generator.startswith("gp:"), proposal.candidates[0].fallback_reason
    assert proposal.fit.diagnostics["n_used"] == 20


def test_only_failures_lead_to_more_space_filling() -> None:
    spec = make_spec(X4)
    failed = tuple(space_filling(spec.space, 20, seed=1))
    view = StudyView(spec=spec, seed=1, data_version=20, failed=failed, n_started=20, design_index=20)
    assert ask(view).candidates[0].generator == "initial:sobol"


def test_a_metric_never_observed_leads_to_labelled_space_filling() -> None:
    metrics = [*LOSS, {"name": "memory", "goal": "constraint", "upper": 1}]
    view = make_view(make_spec(X4, metrics), sphere, 8)
    (candidate,) = ask(view).candidates
    assert candidate.generator == "space-filling"
    assert "never observed" in (candidate.fallback_reason or "")


def test_infeasible_regions_are_avoided() -> None:
    spec = make_spec(X4[:2])
    points = space_filling(spec.space, 40, seed=2)
    good = [p for p in points if p["x0"] > 0.5]
    view = StudyView(
        spec=spec,
        seed=1,
        data_version=40,
        # the objective pulls toward x0 = 0, where nothing can be evaluated
        evaluated=tuple(
            Evaluated(number=i, parameters=p, measurements={"loss": Measurement(value=p["x0"])})
            for i, p in enumerate(good)
        ),
        infeasible=tuple(p for p in points if p["x0"] <= 0.5),
        n_started=40,
    )
    assert all(c.parameters["x0"] > 0.4 for c in ask(view, count=3).candidates)


def test_an_exhausted_space_says_so() -> None:
    spec = make_spec([{"type": "bool", "name": "a"}, {"type": "bool", "name": "b"}])
    values = [(a, b) for a in (False, True) for b in (False, True)]
    evaluated = tuple(
        Evaluated(number=i, parameters={"a": a, "b": b}, measurements={"loss": Measurement(value=float(i))})
        for i, (a, b) in enumerate(values)
    )
    proposal = ask(StudyView(spec=spec, seed=1, data_version=4, evaluated=evaluated, n_started=4))
    assert proposal.candidates == ()
    assert proposal.fit.diagnostics["exhausted"] is True


def test_a_warm_start_comes_from_the_last_state_and_changes_little() -> None:
    view = make_view(make_spec(X4), sphere, 20)
    first = ask(view)
    warm = ask(view, warm=first.fit.state)
    assert first.fit.state is not None
    for name, value in first.candidates[0].parameters.items():
        assert warm.candidates[0].parameters[name] == pytest.approx(value, abs=0.05)


def test_diagnostics_tell_whether_the_model_can_be_trusted() -> None:
    figures = ask(make_view(make_spec(X4), sphere, 30)).fit.diagnostics["outcomes"]["loss"]
    assert figures["loo_r2"] > 0.9
    assert set(figures["lengthscales"]) == {"x0", "x1", "x2", "x3"}
    assert 0 < figures["loo_coverage_90"] <= 1


def test_predictions_are_in_user_units() -> None:
    view = make_view(make_spec(X4), lambda p: {"loss": 1000 + 5 * p["x0"]}, 20)
    (candidate,) = ask(view).candidates
    predicted = candidate.predictions["loss"]
    assert predicted.value == pytest.approx(1000 + 5 * candidate.parameters["x0"], abs=1.0)
    assert predicted.sem is not None
    assert 0 <= predicted.sem < 2


def test_noise_reported_by_the_worker_is_used() -> None:
    spec = make_spec(X4)
    noisy = make_view(spec, sphere, 15)
    evaluated = tuple(
        Evaluated(
            number=e.number,
            parameters=e.parameters,
            measurements={"loss": Measurement(value=e.measurements["loss"].value, sem=0.3)},
        )
        for e in noisy.evaluated
    )
    view = StudyView(spec=spec, seed=1, data_version=15, evaluated=evaluated, n_started=15)
    assert ask(view).candidates[0].generator == "gp:qlognei"


def test_many_observations_are_thinned_and_still_answered() -> None:
    view = make_view(make_spec(X4), sphere, 1500)
    diagnostics = ask(view).fit.diagnostics
    assert diagnostics["n_observations"] == 1500
    assert diagnostics["n_used"] <= 1000


def test_while_nothing_is_feasible_feasibility_is_searched() -> None:
    metrics = [*LOSS, {"name": "memory", "goal": "constraint", "upper": 0.2}]

    def f(p: Any) -> dict[str, float]:
        return sphere(p) | {"memory": 1.0 + p["x0"]}

    assert ask(make_view(make_spec(X4, metrics), f, 10)).candidates[0].generator == "gp:qlogpof"


TWO: Any = (
    {"name": "loss", "goal": "minimize"},
    {"name": "size", "goal": "minimize"},
)


def two_objectives(p: Any) -> dict[str, float]:
    return {"loss": (p["x0"] - 0.2) ** 2, "size": (p["x0"] - 0.8) ** 2 + p["x1"]}


@pytest.mark.parametrize(
    ("metrics", "f", "acquisition"),
    [
        *((LOSS, sphere, name) for name in ("auto", "logei", "qlogei", "qlognei", "qucb")),
        *((TWO, two_objectives, name) for name in ("auto", "qlogehvi", "qlognehvi")),
    ],
)
def test_infeasible_trials_leave_every_acquisition_its_model(metrics, f, acquisition: str) -> None:
    spec = make_spec(X4[:2], metrics=metrics, acquisition=acquisition)
    view = replace(make_view(spec, f, 10), infeasible=({"x0": 0.9, "x1": 0.9}, {"x0": 0.8, "x1": 0.9}))
    (candidate,) = ask(view).candidates
    assert candidate.generator.startswith("gp:")
    assert candidate.fallback_reason is None


def test_skewed_values_are_predicted_within_reach_of_the_data() -> None:
    spec = make_spec([{"type": "float", "name": f"x{i}", "low": 0.0, "high": 1.0} for i in range(6)])

    def steep(p: Any) -> dict[str, float]:
        return {"loss": math.exp(5 * sum((v - 0.37) ** 2 for v in p.values()))}

    for seed in range(8):
        view = replace(make_view(spec, steep, 8), seed=seed)
        values = [e.measurements["loss"].value for e in view.evaluated]
        reach = max(values) - min(values)
        for candidate in ask(view).candidates:
            predicted = candidate.predictions["loss"]
            assert min(values) - 3 * reach < predicted.value < max(values) + 3 * reach
            assert predicted.sem is not None
            assert predicted.sem < 10 * reach


def test_a_local_subset_is_as_large_as_the_options_say() -> None:
    spec = make_spec(X4[:2], surrogate={"name": "gp", "options": {"exact_points": 50, "local_points": 20}})
    view = replace(make_view(spec, sphere, 120), data_version=121)
    assert view.data_version % 5, "not one of the global samples"
    assert ask(view).fit.diagnostics["n_used"] == 20


@pytest.mark.parametrize(
    ("name", "most"),
    [("gp", 1000), ("hmc", 1000), ("nngp", 2000), ("ensemble", 5000), ("svgp", 10_000), ("sgmcmc", 20_000)],
)
def test_a_surrogate_gets_as_many_observations_as_it_is_made_for(name: str, most: int) -> None:
    view = make_view(make_spec(X4[:1], surrogate={"name": name, "options": {}}), sphere, 0)
    assert row_limits(view, plugin(name)) == {"n_exact": most, "n_local": most // 2}


@pytest.mark.parametrize(
    "surrogate",
    [
        {"name": "gp", "options": {"prior": "paper"}},
        {"name": "gp", "options": {"prior": "saas", "dtype": "float32"}},
        {"name": "gp", "options": {"warp": True}},
        {"name": "gp", "options": {"dtype": "float32"}},
        {"name": "svgp", "options": {}},
    ],
    ids=str,
)
@pytest.mark.parametrize("n_pending", [0, 1])
def test_every_gaussian_process_proposes_without_help(surrogate: dict[str, Any], n_pending: int) -> None:
    view = make_view(make_spec(X4[:2], surrogate=surrogate), sphere, 12, n_pending=n_pending)
    first = ask(view)
    again = ask(view, warm=first.fit.state)
    for found in (first, again):
        assert found.candidates[0].generator.startswith(surrogate["name"] + ":")
        assert found.candidates[0].predictions["loss"].sem is not None
        assert found.fit.diagnostics["rungs"] == []


def test_a_surrogate_for_many_observations_sees_them_all_unless_told_otherwise() -> None:
    spec = make_spec(X4[:2], surrogate={"name": "svgp", "options": {"n_inducing": 16}})
    view = replace(make_view(spec, sphere, 1010), data_version=1011)
    assert ask(view).fit.diagnostics["n_used"] == 1010
    fewer = make_spec(X4[:2], surrogate={"name": "svgp", "options": {"exact_points": 60, "local_points": 30}})
    view = replace(make_view(fewer, sphere, 120), data_version=121)
    assert ask(view).fit.diagnostics["n_used"] == 30


def test_a_whole_grid_is_drawn_in_one_request() -> None:
    spec = make_spec([{"type": "int", "name": name, "low": 1, "high": 20} for name in "ab"])
    assert len(ask(make_view(spec, sphere, 0), count=300).candidates) == 300
