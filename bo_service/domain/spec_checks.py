"""What a study's schema cannot say about one field alone: names, ranges, conditions, constraints, metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from bo_service.domain.spec import Metric, StudySpec
from bo_service.domain.spec_parameters import (
    AnyParameter,
    CategoricalParameter,
    Constraint,
    FloatParameter,
    IntParameter,
    MixtureParameter,
    OrdinalParameter,
)
from surrogates import parameters as space
from surrogates.errors import InvalidConfiguration, Problem
from surrogates.space import linear_terms

MAX_STEPS: Final = 2**54
"""Beyond so many, neighbours on a grid are the same double."""


def problems_of(spec: StudySpec) -> list[Problem]:
    """Every contradiction in the study, each with its field path; empty where it is sound."""
    problems = [
        *_duplicates([p.name for p in spec.parameters], "parameters"),
        *_duplicates([m.name for m in spec.metrics], "metrics"),
        *(f for i, p in enumerate(spec.parameters) for f in _parameter(p, f"parameters.{i}")),
        *_conditions(spec),
        *(f for i, m in enumerate(spec.metrics) for f in _metric(m, f"metrics.{i}")),
        *_policies(spec),
    ]
    if not problems:
        terms = linear_terms(spec.space.parameters)
        for i, constraint in enumerate(spec.constraints):
            problems += _constraint(constraint, terms, spec, f"constraints.{i}")
    if not problems:
        problems += _first_points(spec)
    return problems


def _duplicates(names: list[str], path: str) -> Iterator[Problem]:
    seen: set[str] = set()
    for i, name in enumerate(names):
        if name in seen:
            yield Problem(f"{path}.{i}.name", f"{name!r} is used twice", "give every one its own name")
        seen.add(name)


def _parameter(parameter: AnyParameter, path: str) -> Iterator[Problem]:
    if isinstance(parameter, FloatParameter | IntParameter):
        yield from _range(parameter, path)
    elif isinstance(parameter, CategoricalParameter | OrdinalParameter):
        field = "choices" if isinstance(parameter, CategoricalParameter) else "levels"
        values = getattr(parameter, field)
        compiled = space.Categorical(name=parameter.name, choices=tuple(values))
        for i, value in enumerate(values):
            if compiled.index(value) != i:
                yield Problem(f"{path}.{field}.{i}", f"{value!r} appears twice", "list each value once")
    elif isinstance(parameter, MixtureParameter):
        yield from _mixture(parameter, path)


def _range(parameter: FloatParameter | IntParameter, path: str) -> Iterator[Problem]:
    if parameter.low >= parameter.high:
        yield Problem(
            f"{path}.high",
            f"{parameter.high} is not above low = {parameter.low}",
            "for a single value use a parameter of type fixed",
        )
    if parameter.scale == "log" and parameter.low <= 0:
        yield Problem(f"{path}.low", f"{parameter.low} has no logarithm", "a log scale needs low > 0")
    if parameter.step is not None and parameter.step <= 0:
        yield Problem(f"{path}.step", f"{parameter.step} is not positive")
    elif parameter.step is not None and parameter.low < parameter.high < parameter.low + parameter.step:
        yield Problem(f"{path}.step", f"{parameter.step} is larger than the range", "choose a smaller step")
    elif parameter.step is not None and parameter.high - parameter.low > MAX_STEPS * parameter.step:
        yield Problem(f"{path}.step", f"{parameter.step} divides the range too finely", "leave it out")
    if abs(parameter.low) > 1e300 or abs(parameter.high) > 1e300:
        yield Problem(f"{path}.high", "bounds beyond 1e300 overflow", "rescale the parameter")


def _mixture(parameter: MixtureParameter, path: str) -> Iterator[Problem]:
    yield from _duplicates([c.name for c in parameter.components], f"{path}.components")
    for i, component in enumerate(parameter.components):
        if component.low > component.high:
            yield Problem(f"{path}.components.{i}.high", f"{component.high} is below low = {component.low}")
    lowest = sum(c.low for c in parameter.components)
    highest = sum(c.high for c in parameter.components)
    if lowest > 1 + 1e-12:
        yield Problem(f"{path}.components", f"lower shares sum to {lowest:g}, above 1", "lower some of them")
    if highest < 1 - 1e-12:
        yield Problem(f"{path}.components", f"upper shares sum to {highest:g}, below 1", "raise some of them")


def _conditions(spec: StudySpec) -> Iterator[Problem]:
    earlier: dict[str, AnyParameter] = {}
    names = {p.name for p in spec.parameters}
    for i, parameter in enumerate(spec.parameters):
        condition = parameter.active_if
        if condition is not None:
            path = f"parameters.{i}.active_if"
            parent = earlier.get(condition.parent)
            if condition.parent == parameter.name:
                yield Problem(f"{path}.parent", "a parameter cannot be its own parent")
            elif condition.parent not in names:
                yield Problem(f"{path}.parent", f"{condition.parent!r} is not a parameter of this study")
            elif parent is None:
                yield Problem(
                    f"{path}.parent",
                    f"{condition.parent!r} is declared later",
                    "declare a parent before its children (this also rules out cycles)",
                )
            else:
                yield from _condition_values(parent, condition.values, path)
        earlier.setdefault(parameter.name, parameter)


def _condition_values(parent: AnyParameter, values: Sequence[object], path: str) -> Iterator[Problem]:
    if isinstance(parent, FloatParameter | MixtureParameter):
        yield Problem(
            f"{path}.parent",
            f"a {parent.type} parameter cannot decide",
            "use a categorical, ordinal, bool or int",
        )
        return
    compiled = parent.compiled()
    for i, value in enumerate(values):
        if reason := compiled.refuses(value):
            yield Problem(f"{path}.values.{i}", f"{parent.name} never takes it: {reason}", compiled.expects())


def _constraint(
    constraint: Constraint, terms: dict[str, tuple[float, float]], spec: StudySpec, path: str
) -> Iterator[Problem]:
    smallest = largest = 0.0
    for term, coefficient in constraint.coefficients.items():
        if term not in terms:
            yield Problem(
                f"{path}.coefficients.{term}",
                _why_no_term(term, spec),
                f"terms: {', '.join(terms) or 'none'}",
            )
            return
        ends = (coefficient * terms[term][0], coefficient * terms[term][1])
        smallest, largest = smallest + min(ends), largest + max(ends)
        parameter = spec.space[term.partition(".")[0]]
        gridded = isinstance(parameter, space.Int) or getattr(parameter, "step", None) is not None
        if constraint.operator == "==" and gridded:
            yield Problem(
                f"{path}.coefficients.{term}",
                f"{term} moves on a grid, so an equality cannot be met by rounding",
                "use <= and >=, or a float without step",
            )
    slack = 1e-9 * max(1.0, abs(constraint.bound))
    if (constraint.operator != ">=" and smallest > constraint.bound + slack) or (
        constraint.operator != "<=" and largest < constraint.bound - slack
    ):
        yield Problem(
            f"{path}.bound",
            f"cannot be met: the left side lies in [{smallest:g}, {largest:g}]",
            "change the bound or the ranges",
        )


def _why_no_term(term: str, spec: StudySpec) -> str:
    name, _, component = term.partition(".")
    if name not in spec.space:
        return f"{name!r} is not a parameter of this study"
    parameter = spec.space[name]
    if isinstance(parameter, space.Mixture):
        return (
            f"{name!r} has no component {component!r}" if component else "name a share as mixture.component"
        )
    if isinstance(parameter, space.Float | space.Int) and parameter.log:
        return f"{name!r} is on a log scale, where a linear constraint is not linear"
    return f"{name!r} is not numeric"


def _metric(metric: Metric, path: str) -> Iterator[Problem]:
    has_bound = metric.lower is not None or metric.upper is not None
    if metric.goal == "constraint" and not has_bound:
        yield Problem(path, f"constraint {metric.name!r} has no bound", "give lower, upper or both")
    if metric.goal == "track" and has_bound:
        yield Problem(
            path, f"{metric.name!r} is only tracked, so a bound means nothing", "use goal constraint"
        )
    if metric.is_objective and has_bound:
        yield Problem(
            f"{path}.{'lower' if metric.lower is not None else 'upper'}",
            f"{metric.name!r} is an objective, and an objective has no bound",
            "report the value a second time, as a metric with goal constraint; or give a threshold",
        )
    if metric.threshold is not None and not metric.is_objective:
        yield Problem(f"{path}.threshold", "only an objective has a threshold", "use lower or upper")
    if metric.lower is not None and metric.upper is not None and metric.lower > metric.upper:
        yield Problem(f"{path}.upper", f"{metric.upper:g} is below lower = {metric.lower:g}")


def _policies(spec: StudySpec) -> Iterator[Problem]:
    n_objectives = len(spec.objectives)
    if n_objectives == 0:
        yield Problem("metrics", "there is no objective", "give one metric the goal minimize or maximize")
    if n_objectives > 5:
        yield Problem(
            "metrics", f"{n_objectives} objectives are more than the 5 supported", "track some of them"
        )
    if spec.stopping.target is not None and n_objectives != 1:
        yield Problem("stopping.target", "needs exactly one objective", "use thresholds on the metrics")
    if spec.acquisition in ("qlognehvi", "qlogehvi") and n_objectives == 1:
        yield Problem("acquisition", f"{spec.acquisition} needs two or more objectives", "use auto")
    if spec.acquisition in ("logei", "qlogei", "qlognei", "qucb") and n_objectives > 1:
        yield Problem("acquisition", f"{spec.acquisition} takes one objective", "use auto or qlognehvi")


def _first_points(spec: StudySpec) -> Iterator[Problem]:
    for i, point in enumerate(spec.initial.points):
        try:
            spec.space.canonical(point)
        except InvalidConfiguration as error:
            yield from (problem.under(f"initial.points.{i}") for problem in error.problems)
