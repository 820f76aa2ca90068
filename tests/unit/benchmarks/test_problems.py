"""The problems are the ones they say they are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypervolume import trajectory
from problems import (
    MissingLibrary,
    Problem,
    brusselator,
    find,
    high_dimensional,
    lunar_lander,
    names,
    pest_control,
    tuning,
)
from problems.oil_sorbent import LEVELS
from scipy.stats import qmc

from bo_service.domain.spec import StudySpec
from bo_service.domain.spec_checks import problems_of
from surrogates.sampling import space_filling


def at(values) -> dict[str, float]:
    return {f"x{i}": float(v) for i, v in enumerate(values)}


@pytest.mark.parametrize("name", names())
def test_a_study_can_be_made_of_every_problem(name: str) -> None:
    problem = find(name)
    spec = StudySpec.model_validate(
        {"name": name, "parameters": problem.parameters, "metrics": problem.metrics}
    )
    assert problems_of(spec) == []
    assert spec.space == problem.space


def test_the_budgets_are_those_of_the_paper() -> None:
    evaluations = {name: find(name).n_evaluations() for name in names() if not name.startswith("tune")}
    assert evaluations == {
        "branin": 100,
        "hartmann6": 200,
        "ackley10": 200,
        "branincurrin": 105,
        "dtlz1": 100,
        "dtlz5": 110,
        "brusselator": 35,
        "lunar": 550,
        "pest": 120,
        "oil": 200,
        "poly200": 350,
        "network400": 600,
    }
    assert find("branin").n_evaluations(2) == 30


@pytest.mark.parametrize(
    ("name", "optimum"),
    [
        ("branin", (np.pi, 2.275)),
        ("hartmann6", (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573)),
        ("ackley10", (0.0,) * 10),
    ],
)
def test_the_optimum_of_one_objective_is_known(name: str, optimum) -> None:
    problem = find(name)
    assert problem.evaluate(at(optimum), 0)["value"] == pytest.approx(problem.best, abs=1e-5)


def front(problem: Problem, points) -> float:
    """The hypervolume of these points, user units."""
    values = [list(problem.evaluate(at(p), 0).values()) for p in points]
    references = np.array([o.reference for o in problem.objectives])
    return trajectory(-np.array(values), -references)[-1]


def test_the_front_of_dtlz1_has_the_volume_given() -> None:
    problem = find("dtlz1")
    points = [(first, *[0.5] * 4) for first in np.linspace(0, 1, 400)]
    assert problem.best - 1e-3 < front(problem, points) <= problem.best


def test_the_front_of_dtlz5_is_a_curve_in_the_first_float() -> None:
    problem = find("dtlz5")
    values = np.array(
        [list(problem.evaluate(at([first, 0.2, *[0.5] * 18]), 0).values()) for first in (0.0, 0.3, 1.0)]
    )
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(values[:, 0], values[:, 1], atol=1e-12)


def test_branin_and_currin_have_the_volume_given() -> None:
    problem = find("branincurrin")
    found = front(problem, qmc.Sobol(2, seed=0).random(2048))
    # slowly from below: 57.99 of a grid of 200 by 200, 59.08 of one of 800 by 800
    assert 0.88 * problem.best < found < problem.best


def test_poly200_is_the_sum_of_products_of_strided_groups() -> None:
    x, c = np.random.default_rng(0).random(200), high_dimensional.centres()
    total = 0.0
    for j in range(50):
        product = 1.0
        for k in range(4):
            product *= x[j + 50 * k] - c[j + 50 * k]
        total += product
    assert find("poly200").evaluate(at(x), 0)["value"] == pytest.approx(total)


def test_the_optimum_of_poly200_is_reached_at_a_corner() -> None:
    problem, c, best = find("poly200"), high_dimensional.centres(), np.zeros(200)
    for j in range(50):
        group = [j + 50 * k for k in range(4)]
        corners = list(itertools.product([0.0, 1.0], repeat=4))
        best[group] = max(corners, key=lambda corner, own=c[group]: np.prod(np.array(corner) - own))
    assert problem.evaluate(at(best), 0)["value"] == pytest.approx(problem.best)


def test_the_network_is_the_same_one_for_everybody() -> None:
    # a NumPy that draws other weights makes another problem, whose results cannot be compared
    assert find("network400").evaluate(at([0.5] * 400), 0)["value"] == pytest.approx(3.73256994677)


def test_the_brusselator_converges_as_the_step_is_halved() -> None:
    noise = brusselator.initial_noise(1)
    coarse, middle, fine = (
        brusselator.weighted_variance(brusselator.solved(1.0, 3.0, 1.0, 0.1, noise=noise, step=step))
        for step in (8e-3, 4e-3, 2e-3)
    )
    # of first order: each halving leaves half the error
    assert 0.3 < (middle - fine) / (coarse - middle) < 0.7
    assert fine == pytest.approx(middle, rel=0.02)


def test_the_brusselator_rests_where_it_is_stable() -> None:
    fields = brusselator.solved(2.0, 3.0, 0.5, 0.5, noise=np.zeros((64, 64)), step=0.02)
    np.testing.assert_allclose(fields[0], 2.0)
    np.testing.assert_allclose(fields[1], 1.5)


@pytest.mark.parametrize("constants", [(0.1, 5.0, 0.01, 0.01), (0.1, 5.0, 5.0, 5.0), (5.0, 5.0, 5.0, 0.01)])
def test_the_brusselator_stays_positive_where_it_bursts(constants) -> None:
    fields = brusselator.solved(*constants, noise=brusselator.initial_noise(0), step=8e-3)
    assert np.isfinite(fields).all()
    assert fields.min() > 0


def test_the_seed_is_the_noise_of_the_brusselator() -> None:
    assert find("brusselator").is_noisy
    assert np.array_equal(brusselator.initial_noise(3), brusselator.initial_noise(3))
    assert not np.array_equal(brusselator.initial_noise(3), brusselator.initial_noise(4))


def test_random_plans_against_pests_cost_what_others_measured() -> None:
    """A mean of 18.7 and a best of 200 of 16.5, the same draws serving all stages."""
    rng = np.random.default_rng(0)
    choices = [pest_control.NONE, *pest_control.PESTICIDES]
    losses = [pest_control.loss([str(c) for c in rng.choice(choices, 25)]) for _ in range(200)]
    assert np.mean(losses) == pytest.approx(18.7, abs=0.2)
    assert min(losses) == pytest.approx(16.5, abs=0.6)


def test_a_pesticide_used_throughout_costs_its_discount_and_wears_off() -> None:
    price = 25 * 0.7 * (1 - 0.3)
    assert price <= pest_control.loss(["third"] * 25) <= price + 25
    assert pest_control.loss([pest_control.NONE] * 25) > 20


def test_oil_at_its_largest_levels_is_the_sum_of_all_coefficients() -> None:
    largest = {name: levels[-1] for name, levels in LEVELS.items()} | {"v1": 1.0, "v5": 1.0}
    found = find("oil").evaluate(largest, 0)
    assert found == pytest.approx({"angle": 48.6414, "absorption": -101.7424, "strength": -9.2195})


def test_the_reference_controller_lands() -> None:
    pytest.importorskip("gymnasium", reason="the lander needs Gymnasium")
    pytest.importorskip("Box2D", reason="the lander needs Box2D")
    assert all(lunar_lander.reward(lunar_lander.REFERENCE, terrain) > 200 for terrain in range(5))


def test_a_problem_says_what_it_lacks() -> None:
    lacking = Problem(
        name="lacking",
        summary="",
        parameters=(),
        objectives=(),
        n_initial=1,
        batch=1,
        iterations=1,
        evaluate=find("branin").evaluate,
        libraries=("no_such_library",),
    )
    with pytest.raises(MissingLibrary, match="no_such_library"):
        lacking.require_libraries()


@pytest.mark.parametrize("problem", tuning.TASKS, ids=lambda p: p.name)
def test_a_tuning_task_gives_the_same_error_again(problem: Problem) -> None:
    (configuration,) = space_filling(problem.space, 1, seed=5)
    first, second = (problem.evaluate(configuration, seed)["error"] for seed in (0, 1))
    assert first == second
    assert 0 < first < 150


def test_the_table_of_a_tuning_task_is_made_once(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tuning, "N_CONFIGURATIONS", 2)
    made = tuning.table(tuning.MLP, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    assert tuning.table(tuning.MLP, folder=tmp_path) == made
    assert path.stat().st_mtime_ns == written
    assert len(made) == 2
    assert all(error > 0 for _, error in made)
