"""Encoding, charts, sampling and search keep to the search space, whatever it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surrogates.charts import Chart
from surrogates.encoding import Encoding
from surrogates.errors import EmptyRegion
from surrogates.parameters import (
    Bool,
    Categorical,
    Component,
    Condition,
    Fixed,
    Float,
    Int,
    Mixture,
    Ordinal,
)
from surrogates.sampling import centre, feasibility_problem, random_configurations, space_filling
from surrogates.search import _neighbours, maximise
from surrogates.space import LinearConstraint, SearchSpace

MIXED = SearchSpace(
    parameters=(
        Float(name="lr", low=1e-5, high=0.1, log=True),
        Float(name="grid", low=0.0, high=1.0, step=0.25),
        Int(name="k", low=1, high=9, step=2),
        Categorical(name="model", choices=("a", "b", "c")),
        Ordinal(name="size", choices=(16, 32, 64)),
        Bool(name="flag"),
        Fixed(name="constant", value="adam"),
        Mixture(
            name="mix",
            components=(
                Component(name="u", low=0.1, high=0.6),
                Component(name="v", high=0.5),
                Component(name="w"),
            ),
        ),
        Float(name="child", low=-1.0, high=1.0, active_if=Condition(parent="model", values=("b", "c"))),
        Int(name="grandchild", low=1, high=5, active_if=Condition(parent="flag", values=(True,))),
    ),
    constraints=(
        LinearConstraint(coefficients={"mix.u": 1, "mix.v": 2}, operator="<=", bound=1.2),
        LinearConstraint(coefficients={"grid": 1, "k": 0.1}, operator=">=", bound=0.3),
    ),
)
EQUAL = SearchSpace(
    parameters=(
        Mixture(name="m", components=tuple(Component(name=c, low=0.05, high=0.4) for c in "abcdef")),
        Float(name="x", low=0, high=10),
        Int(name="k", low=1, high=100),
    ),
    constraints=(
        LinearConstraint(coefficients={"m.a": 1, "m.b": -1}, operator="==", bound=0),
        LinearConstraint(coefficients={"x": 1, "k": 1}, operator="<=", bound=5),
        LinearConstraint(coefficients={"x": 1, "m.c": 10}, operator=">=", bound=3),
    ),
)
THIN = SearchSpace(
    parameters=(Float(name="x", low=0, high=1), Float(name="y", low=0, high=1)),
    constraints=(
        LinearConstraint(coefficients={"x": 1, "y": 1}, operator="<=", bound=0.5),
        LinearConstraint(coefficients={"x": 1, "y": 1}, operator=">=", bound=0.4999),
    ),
)
SPACES = [MIXED, EQUAL, THIN]


@pytest.mark.parametrize("space", SPACES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31 - 1))
def test_every_sampled_configuration_is_canonical_and_survives_encoding(
    space: SearchSpace, seed: int
) -> None:
    encoding = Encoding(space)
    for configuration in space_filling(space, 4, seed=seed):
        assert space.canonical(configuration) == configuration
        (row,) = encoding.encode([configuration])
        assert np.all((row >= -1e-9) & (row <= 1 + 1e-9))
        assert space.key(encoding.decode(row)) == space.key(configuration)
        for value in configuration.values():
            if isinstance(value, dict):
                assert abs(sum(value.values()) - 1) <= 1e-9


@pytest.mark.parametrize("space", SPACES)
def test_the_sequence_is_the_same_in_one_go_or_in_parts(space: SearchSpace) -> None:
    whole = space_filling(space, 10, seed=3)
    assert space_filling(space, 5, seed=3) + space_filling(space, 5, seed=3, start=5) == whole
    assert space_filling(space, 10, seed=4) != whole


@pytest.mark.parametrize("space", SPACES)
def test_the_centre_is_feasible(space: SearchSpace) -> None:
    assert space.canonical(centre(space)) == centre(space)


def test_a_mixture_without_upper_bounds_is_sampled_uniformly() -> None:
    space = SearchSpace(parameters=(Mixture(name="m", components=tuple(Component(name=c) for c in "abc")),))
    shares = np.array([[c["m"][n] for n in "abc"] for c in space_filling(space, 2048, seed=0)])
    # on the uniform simplex every share has mean 1/3 and variance 1/18
    assert shares.mean(axis=0) == pytest.approx([1 / 3] * 3, abs=0.01)
    assert shares.var(axis=0) == pytest.approx([1 / 18] * 3, abs=0.005)


def test_fixed_values_stay() -> None:
    for configuration in space_filling(MIXED, 8, seed=0, fixed={"k": 7, "model": "a"}):
        assert (configuration["k"], configuration["model"]) == (7, "a")


def test_an_empty_region_is_found_before_anything_is_sampled() -> None:
    empty = SearchSpace(
        parameters=THIN.parameters,
        constraints=(
            LinearConstraint(coefficients={"x": 1, "y": 1}, operator="<=", bound=0.5),
            LinearConstraint(coefficients={"x": 1, "y": 1}, operator=">=", bound=0.6),
        ),
    )
    assert feasibility_problem(empty) == "no values of x, y meet all of them"
    assert feasibility_problem(THIN) is None
    with pytest.raises(EmptyRegion):
        space_filling(empty, 1, seed=0)


@pytest.mark.parametrize("space", [MIXED, EQUAL])
def test_the_chart_and_its_gradient_agree_with_finite_differences(space: SearchSpace) -> None:
    encoding = Encoding(space)
    chart = Chart(encoding)
    rng = np.random.default_rng(0)
    features = encoding.encode(random_configurations(space, 5, rng=rng))
    z = np.clip(chart.coordinates(features), 0.05, 0.95)
    weights = rng.normal(size=features.shape)
    value = lambda z: (weights * np.sin(chart.features(z))).sum(axis=1)  # noqa: E731
    pulled = chart.pulled_back(z, weights * np.cos(chart.features(z)))
    for i, e in enumerate(np.eye(chart.n_coordinates)):
        numerical = (value(z + 1e-6 * e) - value(z - 1e-6 * e)) / 2e-6
        assert pulled[:, i] == pytest.approx(numerical, rel=1e-4, abs=1e-6)
    assert chart.features(chart.coordinates(features)) == pytest.approx(features, abs=1e-9)


def quadratic(target: np.ndarray):
    return (
        lambda x: -((x - target) ** 2).sum(axis=1),
        lambda x: (-((x - target) ** 2).sum(axis=1), -2 * (x - target)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES)
def test_the_search_finds_the_best_of_a_known_function_within_the_space(space: SearchSpace) -> None:
    encoding = Encoding(space)
    rng = np.random.default_rng(1)
    goal = space_filling(space, 1, seed=9)[0]
    (target,) = encoding.encode([goal])
    value, both = quadratic(target)
    found = maximise(
        value, both, encoding, rng=rng, incumbents=np.zeros((0, encoding.n_features)), evaluated=set()
    )
    best = max(value(encoding.encode(random_configurations(space, 2000, rng=rng))))
    assert space.canonical(found[0].configuration) == found[0].configuration
    assert found[0].value >= best - 1e-9
    assert found[0].value > -0.02


def test_the_search_never_repeats_and_says_when_nothing_is_left() -> None:
    space = SearchSpace(parameters=(Bool(name="b"), Categorical(name="c", choices=("x", "y", "z"))))
    encoding = Encoding(space)
    value, both = quadratic(np.zeros(encoding.n_features))
    seen: set[str] = set()
    for _ in range(6):
        found = maximise(
            value,
            both,
            encoding,
            rng=np.random.default_rng(0),
            incumbents=np.zeros((0, encoding.n_features)),
            evaluated=seen,
        )
        key = space.key(found[0].configuration)
        assert key not in seen
        seen.add(key)
    assert len(seen) == 6
    last = maximise(
        value, both, encoding, rng=np.random.default_rng(0), incumbents=np.zeros((0, 4)), evaluated=seen
    )
    assert last == ()


def test_keys_tell_large_numbers_apart() -> None:
    ints = SearchSpace(parameters=(Int(name="n", low=2_000_000_000, high=2_000_000_100),))
    assert len({ints.key({"n": 2_000_000_000 + i}) for i in range(101)}) == 101
    floats = SearchSpace(parameters=(Float(name="x", low=1e9, high=1e9 + 1),))
    assert floats.key({"x": 1e9 + 0.25}) != floats.key({"x": 1e9 + 0.2501})
    assert floats.key({"x": 1e9 + 0.25}) == floats.key({"x": 1e9 + 0.25 + 1e-12})


def test_integers_on_a_thin_plane_are_found() -> None:
    whole = tuple(Int(name=name, low=0, high=50) for name in "xyz")
    plane = LinearConstraint(coefficients={"x": 17.0, "y": 19.0, "z": 23.0}, operator="==", bound=1000.0)
    found = space_filling(SearchSpace(parameters=whole, constraints=(plane,)), 30, seed=3)
    assert all(17 * c["x"] + 19 * c["y"] + 23 * c["z"] == 1000 for c in found)
    assert len({(c["x"], c["y"]) for c in found}) > 5


def test_a_thin_branch_is_drawn_as_often_as_a_wide_one() -> None:
    inside = Condition(parent="b", values=(True,))
    space = SearchSpace(
        parameters=(
            Bool(name="b"),
            Float(name="x", low=0.0, high=1.0, active_if=inside),
            Float(name="y", low=0.0, high=1.0, active_if=inside),
        ),
        constraints=(LinearConstraint(coefficients={"x": 1.0, "y": 1.0}, operator="==", bound=0.7),),
    )
    found = space_filling(space, 64, seed=1)
    assert 24 <= sum(c["b"] for c in found) <= 40
    assert all(c["x"] + c["y"] == pytest.approx(0.7, abs=1e-9) for c in found if c["b"])


def test_floats_on_a_grid_have_neighbours() -> None:
    stepped = Float(name="x", low=0.0, high=1.0, step=0.25)
    assert _neighbours(stepped, 0.25) == [0.0, 0.5, 0.75]
    assert _neighbours(Float(name="x", low=0.0, high=1.0), 0.25) == []


def _on_a_line(**fixed: float) -> list[dict]:
    """Two opposite inequalities that leave only a line of the square."""
    both = [LinearConstraint(coefficients={"x": 1, "y": 1}, operator=o, bound=0.5) for o in ("<=", ">=")]
    space = SearchSpace(parameters=THIN.parameters, constraints=tuple(both))
    found = space_filling(space, 20, seed=0, fixed=fixed)
    assert all(space.canonical(c) == c for c in found)
    return found


def test_inequalities_that_are_an_equality_together_leave_as_much_as_one() -> None:
    found = _on_a_line()
    assert len({c["x"] for c in found}) == 20
    assert max(c["x"] for c in found) - min(c["x"] for c in found) > 0.3
    assert {round(c["y"], 9) for c in _on_a_line(x=0.2)} == {0.3}


def test_a_corner_that_constraints_leave_is_found() -> None:
    corner = LinearConstraint(coefficients={"x": 1, "y": 1}, operator=">=", bound=2.0)
    third = Float(name="z", low=0, high=1)
    free = LinearConstraint(coefficients={"x": 1, "y": 1, "z": -1}, operator="<=", bound=2.0)
    space = SearchSpace(parameters=(*THIN.parameters, third), constraints=(corner, free))
    found = space_filling(space, 10, seed=0)
    assert all((c["x"], c["y"]) == pytest.approx((1.0, 1.0), abs=1e-6) for c in found)
    assert len({c["z"] for c in found}) == 10


def test_a_search_where_nothing_is_feasible_says_so() -> None:
    half = LinearConstraint(coefficients={"x": 1, "y": 1}, operator="<=", bound=0.5)
    encoding = Encoding(SearchSpace(parameters=THIN.parameters, constraints=(half,)))
    value, both = quadratic(np.zeros(2))
    with pytest.raises(EmptyRegion, match="x, y"):
        maximise(
            value,
            both,
            encoding,
            rng=np.random.default_rng(0),
            incumbents=np.zeros((1, 2)),
            evaluated=set(),
            fixed={"x": 0.9},
        )
