"""The study's schema: what is accepted, and what is refused with which field and which words."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from bo_service.domain.spec import StudySpec
from bo_service.domain.spec_checks import problems_of
from bo_service.domain.spec_parameters import parse_constraint
from bo_service.domain.validation import problems_in
from surrogates.errors import InvalidConfiguration, Problem

X = {"type": "float", "name": "x", "low": 0, "high": 1}
MIX = {"type": "mixture", "name": "mix", "components": [{"name": "web"}, {"name": "code"}, {"name": "books"}]}
MODEL = {"type": "categorical", "name": "model", "choices": ["mlp", "tree"]}
LOSS = {"name": "loss", "goal": "minimize"}


def problems(**changes: Any) -> list[Problem]:
    """Everything wrong with a study, whether the schema or the checks say so."""
    document = {"name": "s", "parameters": [X], "metrics": [LOSS]} | changes
    try:
        spec = StudySpec.model_validate(document)
    except ValidationError as error:
        return problems_in(error)
    return problems_of(spec)


@pytest.mark.parametrize(
    "parameters",
    [
        [X],
        [X | {"scale": "log", "low": 1e-6}],
        [X | {"step": 0.25}],
        [{"type": "int", "name": "k", "low": 1, "high": 64, "scale": "log"}],
        [{"type": "int", "name": "k", "low": 0, "high": 9, "step": 3}],
        [MODEL],
        [{"type": "categorical", "name": "c", "choices": [1, "1", True, 2.5]}],
        [{"type": "ordinal", "name": "o", "levels": ["low", "middle", "high"]}],
        [{"type": "ordinal", "name": "o", "levels": [16, 32, 64]}],
        [{"type": "bool", "name": "b"}],
        [X, {"type": "fixed", "name": "f", "value": "adam"}],
        [MIX],
        [MODEL, X | {"active_if": {"parent": "model", "values": ["mlp"]}}],
    ],
)
def test_every_kind_of_parameter_is_accepted(parameters: list[dict[str, Any]]) -> None:
    assert problems(parameters=parameters) == []


REFUSED = [
    # float
    ([X | {"low": 2}], "parameters.0.high", "1 is not above low = 2"),
    ([X | {"low": 0, "scale": "log"}], "parameters.0.low", "0 has no logarithm"),
    ([X | {"step": -1}], "parameters.0.step", "-1 is not positive"),
    ([X | {"step": 5}], "parameters.0.step", "larger than the range"),
    ([X | {"low": "0"}], "parameters.0.low", "finite number without quotes"),
    ([X | {"high": float("inf")}], "parameters.0.high", "finite number"),
    ([X | {"hihg": 3}], "parameters.0.hihg", "not permitted"),
    ([X | {"name": "2x"}], "parameters.0.name", "pattern"),
    # int
    ([{"type": "int", "name": "k", "low": 1.5, "high": 3}], "parameters.0.low", "valid integer"),
    ([{"type": "int", "name": "k", "low": 3, "high": 3}], "parameters.0.high", "not above"),
    (
        [{"type": "int", "name": "k", "low": 1, "high": 3, "step": 0}],
        "parameters.0.step",
        "greater than or equal",
    ),
    # categorical, ordinal
    ([{"type": "categorical", "name": "c", "choices": ["a"]}], "parameters.0.choices", "at least 2"),
    (
        [{"type": "categorical", "name": "c", "choices": ["a", "a"]}],
        "parameters.0.choices.1",
        "'a' appears twice",
    ),
    ([{"type": "categorical", "name": "c", "choices": ["a", {}]}], "parameters.0.choices.1", "give a text"),
    ([{"type": "ordinal", "name": "o", "levels": [1, 2, 1]}], "parameters.0.levels.2", "1 appears twice"),
    # bool, fixed
    ([{"type": "bool", "name": "b", "low": 0}], "parameters.0.low", "not permitted"),
    ([{"type": "fixed", "name": "f"}], "parameters.0.value", "field required"),
    ([{"type": "fixed", "name": "f", "value": [1]}], "parameters.0.value", "give a text"),
    # mixture
    ([MIX | {"components": [{"name": "a"}]}], "parameters.0.components", "at least 2"),
    (
        [MIX | {"components": [{"name": "a", "low": 0.7}, {"name": "b", "low": 0.7}]}],
        "parameters.0.components",
        "lower shares sum to 1.4, above 1",
    ),
    (
        [MIX | {"components": [{"name": "a", "high": 0.3}, {"name": "b", "high": 0.3}]}],
        "parameters.0.components",
        "upper shares sum to 0.6, below 1",
    ),
    (
        [MIX | {"components": [{"name": "a", "low": 0.5, "high": 0.2}, {"name": "b"}]}],
        "parameters.0.components.0.high",
        "0.2 is below low = 0.5",
    ),
    ([MIX | {"components": [{"name": "a"}, {"name": "a"}]}], "parameters.0.components.1.name", "used twice"),
    # conditional
    ([X | {"active_if": {"parent": "y", "values": [1]}}], "parameters.0.active_if.parent", "not a parameter"),
    ([X | {"active_if": {"parent": "x", "values": [1]}}], "parameters.0.active_if.parent", "its own parent"),
    (
        [X | {"active_if": {"parent": "model", "values": ["mlp"]}}, MODEL],
        "parameters.0.active_if.parent",
        "declared later",
    ),
    (
        [MODEL, X | {"active_if": {"parent": "model", "values": ["svm"]}}],
        "parameters.1.active_if.values.0",
        "model never takes it",
    ),
    (
        [X, {"type": "bool", "name": "b", "active_if": {"parent": "x", "values": [1]}}],
        "parameters.1.active_if.parent",
        "a float parameter cannot decide",
    ),
    # the list
    ([X, X], "parameters.1.name", "'x' is used twice"),
    ([{"type": "flaot", "name": "x"}], "parameters.0", "does not match any"),
    ([{"name": "x"}], "parameters.0", "discriminator"),
    ([], "parameters", "at least 1"),
]


@pytest.mark.parametrize(("parameters", "path", "words"), REFUSED)
def test_a_bad_parameter_is_refused_by_field_and_reason(parameters, path: str, words: str) -> None:
    found = problems(parameters=parameters)
    assert any(p.path == path and words in p.reason for p in found), found


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"metrics": [{"name": "loss", "goal": "track"}]}, "metrics", "there is no objective"),
        ({"metrics": [LOSS, LOSS]}, "metrics.1.name", "used twice"),
        ({"metrics": [LOSS, {"name": "m", "goal": "constraint"}]}, "metrics.1", "has no bound"),
        ({"metrics": [LOSS, {"name": "m", "goal": "track", "upper": 1}]}, "metrics.1", "only tracked"),
        (
            {"metrics": [LOSS, {"name": "m", "goal": "constraint", "lower": 2, "upper": 1}]},
            "metrics.1.upper",
            "below",
        ),
        (
            {"metrics": [LOSS, {"name": "m", "goal": "constraint", "upper": 1, "threshold": 1}]},
            "metrics.1.threshold",
            "only an objective",
        ),
        ({"metrics": [{"name": "loss", "goal": "min"}]}, "metrics.0.goal", "'minimize', 'maximize'"),
        ({"constraints": ["y <= 1"]}, "constraints.0.coefficients.y", "not a parameter"),
        ({"constraints": ["x <= "]}, "constraints.0", "one side is empty"),
        ({"constraints": ["x < 1"]}, "constraints.0", "write one of <=, >=, =="),
        ({"constraints": ["x >= 2"]}, "constraints.0.bound", "the left side lies in [0, 1]"),
        (
            {"parameters": [X | {"low": 0.1, "scale": "log"}], "constraints": ["x <= 0.5"]},
            "constraints.0.coefficients.x",
            "log scale",
        ),
        (
            {"parameters": [{"type": "int", "name": "k", "low": 1, "high": 9}], "constraints": ["k == 3"]},
            "constraints.0.coefficients.k",
            "moves on a grid",
        ),
        (
            {"parameters": [MIX], "constraints": ["mix <= 0.5"]},
            "constraints.0.coefficients.mix",
            "mixture.component",
        ),
        ({"initial": {"points": [{"x": 3}]}}, "initial.points.0.x", "3 is outside [0, 1]"),
        ({"initial": {"size": 0}}, "initial.size", "greater than or equal"),
        ({"stopping": {"max_trials": 0}}, "stopping.max_trials", "greater than or equal"),
        ({"stopping": {"max_cost": -1}}, "stopping.max_cost", "greater than 0"),
        (
            {"metrics": [LOSS, {"name": "m", "goal": "maximize"}], "stopping": {"target": 1}},
            "stopping.target",
            "exactly one objective",
        ),
        ({"retry": {"max_attempts": 0}}, "retry.max_attempts", "greater than or equal"),
        ({"retry": {"lease_seconds": 0.1}}, "retry.lease_seconds", "greater than or equal"),
        ({"parallelism": 0}, "parallelism", "greater than or equal"),
        ({"seed": -1}, "seed", "greater than or equal"),
        ({"acquisition": "magic"}, "acquisition", "input should be"),
        ({"acquisition": "qlognehvi"}, "acquisition", "two or more objectives"),
        ({"name": ""}, "name", "pattern"),
        ({"colour": "red"}, "colour", "not permitted"),
    ],
)
def test_a_bad_field_is_refused_by_path_and_reason(changes, path: str, words: str) -> None:
    found = problems(**changes)
    assert any(p.path == path and words in p.reason for p in found), found


def test_all_problems_come_at_once() -> None:
    found = problems(parameters=[X | {"low": 2}, X], metrics=[LOSS, LOSS])
    assert {p.path for p in found} == {"parameters.0.high", "parameters.1.name", "metrics.1.name"}


@pytest.mark.parametrize(
    ("text", "coefficients", "operator", "bound"),
    [
        ("a + b <= 3", {"a": 1, "b": 1}, "<=", 3),
        ("2*a - 0.5*mix.web >= b", {"a": 2, "mix.web": -0.5, "b": -1}, ">=", 0),
        ("3 == a + 1", {"a": -1}, "==", -2),
        ("1e-3*a <= 2e2", {"a": 1e-3}, "<=", 200),
    ],
)
def test_a_constraint_is_read_from_text(text, coefficients, operator, bound) -> None:
    assert parse_constraint(text) == {"coefficients": coefficients, "operator": operator, "bound": bound}


TREE = StudySpec.model_validate(
    {
        "name": "tree",
        "parameters": [
            MODEL,
            {
                "type": "int",
                "name": "layers",
                "low": 1,
                "high": 3,
                "active_if": {"parent": "model", "values": ["mlp"]},
            },
            X | {"name": "dropout", "active_if": {"parent": "layers", "values": [2, 3]}},
        ],
        "metrics": [LOSS],
    }
)


def test_conditions_reach_any_depth() -> None:
    space = TREE.space
    assert space.canonical({"model": "tree"}) == {"model": "tree"}
    assert space.canonical({"model": "mlp", "layers": 1}) == {"model": "mlp", "layers": 1}
    full = {"model": "mlp", "layers": 2, "dropout": 0.5}
    assert space.canonical(full) == full
    with pytest.raises(InvalidConfiguration, match=r"dropout: is not active here .*layers is 2, 3"):
        space.canonical({"model": "mlp", "layers": 1, "dropout": 0.5})
    with pytest.raises(InvalidConfiguration, match="dropout: is missing"):
        space.canonical({"model": "mlp", "layers": 3})


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"web": 0.5, "code": 0.6, "books": 0.1}, "shares sum to 1.2, not 1"),
        ({"web": 1.0, "code": 0.0}, "lacks a share for books"),
        ({"web": 1.0, "code": 0.0, "books": 0.0, "law": 0}, "no component law"),
        ({"web": float("nan"), "code": 0.0, "books": 0.0}, "not a finite number"),
        (0.5, "not a mapping"),
    ],
)
def test_a_bad_mixture_value_is_refused(shares, words: str) -> None:
    space = StudySpec.model_validate({"name": "m", "parameters": [MIX], "metrics": [LOSS]}).space
    with pytest.raises(InvalidConfiguration, match=words):
        space.canonical({"mix": shares})


def test_the_initial_design_grows_slowly_with_the_dimension() -> None:
    def n_initial(d: int) -> int:
        parameters = [X | {"name": f"x{i}"} for i in range(d)]
        return StudySpec.model_validate({"name": "s", "parameters": parameters, "metrics": [LOSS]}).n_initial

    assert [n_initial(d) for d in (1, 8, 10, 50)] == [6, 6, 7, 20]
    only_bool = {"name": "s", "parameters": [{"type": "bool", "name": "b"}], "metrics": [LOSS]}
    assert StudySpec.model_validate(only_bool).n_initial == 2
