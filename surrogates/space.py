"""The search space: parameters, their conditions and linear constraints, in user units (standard library only)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from surrogates.errors import InvalidConfiguration, Problem
from surrogates.parameters import (
    Bool,
    Categorical,
    Configuration,
    Fixed,
    Float,
    Int,
    Mixture,
    Ordinal,
    Parameter,
    Shares,
    Value,
    unit_of,
)

__all__ = [
    "Bool",
    "Categorical",
    "Configuration",
    "Fixed",
    "Float",
    "Int",
    "LinearConstraint",
    "Mixture",
    "Operator",
    "Ordinal",
    "Parameter",
    "SearchSpace",
    "Shares",
    "Value",
]

Operator = Literal["<=", ">=", "=="]

FEASIBILITY_TOLERANCE: Final = 1e-8
"""A linear constraint counts as met when it is missed by no more than this times its scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearConstraint:
    """sum of coefficient * term (operator) bound, in user units.

    A term is a float or int parameter, or one share of a mixture written `mixture.component`.
    The constraint binds only where all its parameters are active.
    """

    coefficients: Mapping[str, float]
    operator: Operator
    bound: float

    def value(self, configuration: Configuration) -> float | None:
        """The left side, or None where a term is inactive."""
        total = 0.0
        for term, coefficient in self.coefficients.items():
            share_of, _, component = term.partition(".")
            value = configuration.get(share_of)
            if isinstance(value, Mapping):
                value = value.get(component)
            if value is None or isinstance(value, str):
                return None
            total += coefficient * float(value)
        return total

    def is_met(self, configuration: Configuration) -> bool:
        """Whether the configuration satisfies the constraint up to rounding."""
        left = self.value(configuration)
        if left is None:
            return True
        scale = max(1.0, abs(self.bound), *(abs(c) for c in self.coefficients.values()))
        slack = FEASIBILITY_TOLERANCE * scale
        if self.operator == "<=":
            return left <= self.bound + slack
        if self.operator == ">=":
            return left >= self.bound - slack
        return abs(left - self.bound) <= slack

    def __str__(self) -> str:
        left = " + ".join(
            term if coefficient == 1 else f"{coefficient:g}*{term}"
            for term, coefficient in self.coefficients.items()
        )
        return f"{left} {self.operator} {self.bound:g}".replace("+ -", "- ")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """Parameters in declaration order (a parent stands before its children) and linear constraints."""

    parameters: tuple[Parameter, ...]
    constraints: tuple[LinearConstraint, ...] = ()
    _by_name: Mapping[str, Parameter] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {p.name: p for p in self.parameters})

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters)

    def __getitem__(self, name: str) -> Parameter:
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @property
    def n_free(self) -> int:
        """Degrees of freedom: a mixture of k components counts k - 1, a fixed parameter none."""
        free = sum(parameter.n_free for parameter in self.parameters)
        return free - sum(constraint.operator == "==" for constraint in self.constraints)

    @property
    def is_conditional(self) -> bool:
        return any(parameter.active_if is not None for parameter in self.parameters)

    @property
    def n_configurations(self) -> float:
        """How many configurations exist, conditions and constraints ignored; infinite with a continuous one."""
        # as floats: the product of many large integers is an integer that no float can hold
        return math.prod(float(parameter.n_levels) for parameter in self.parameters)

    def is_active(self, parameter: Parameter, configuration: Configuration) -> bool:
        """Whether the parameter has a meaning under the values given to its ancestors."""
        condition = parameter.active_if
        if condition is None:
            return True
        parent = self._by_name[condition.parent]
        if not self.is_active(parent, configuration):
            return False
        given = configuration.get(parent.name)
        return any(_same(given, value) for value in condition.values)

    def active(self, configuration: Configuration) -> tuple[Parameter, ...]:
        """The parameters that have a meaning in this configuration, parents first."""
        return tuple(p for p in self.parameters if self.is_active(p, configuration))

    def violated(self, configuration: Configuration) -> tuple[LinearConstraint, ...]:
        """The linear constraints this configuration breaks."""
        return tuple(c for c in self.constraints if not c.is_met(configuration))

    def canonical(self, configuration: Configuration) -> dict[str, Value | Shares]:
        """The configuration with every value in its parameter's own type and inactive ones refused.

        Fixed parameters may be left out. Shares of a mixture are brought to a sum of exactly 1.

        Raises: InvalidConfiguration with one problem for each field at fault.
        """
        problems: list[Problem] = []
        values: dict[str, Value | Shares] = {}
        for parameter in self.parameters:
            if not self.is_active(parameter, values):
                if parameter.name in configuration and configuration[parameter.name] is not None:
                    problems.append(self._inactive(parameter))
                continue
            if parameter.name not in configuration and not isinstance(parameter, Fixed):
                problems.append(Problem(parameter.name, "is missing", parameter.expects()))
                continue
            given = configuration.get(parameter.name, getattr(parameter, "value", None))
            reason = parameter.refuses(given)
            if reason is None:
                values[parameter.name] = parameter.canonical(given)
            else:
                problems.append(Problem(parameter.name, reason, parameter.expects()))
        problems += [
            Problem(name, "is not a parameter of this study", f"parameters: {', '.join(self._by_name)}")
            for name in configuration
            if name not in self._by_name
        ]
        if not problems:
            problems = [
                Problem(next(iter(c.coefficients)).partition(".")[0], f"breaks the constraint {c}")
                for c in self.violated(values)
            ]
        if problems:
            raise InvalidConfiguration(problems)
        return values

    def _inactive(self, parameter: Parameter) -> Problem:
        condition = parameter.active_if
        assert condition is not None
        allowed = ", ".join(map(repr, condition.values))
        return Problem(
            parameter.name, "is not active here", f"leave it out unless {condition.parent} is {allowed}"
        )

    def key(self, configuration: Configuration) -> str:
        """A digest equal for equal configurations.

        Floats count as equal within 1e-10 of their range and shares within 1e-9, everything else exactly.
        """
        rounded = {
            name: _rounded(value, self._by_name.get(name)) for name, value in sorted(configuration.items())
        }
        return hashlib.sha256(json.dumps(rounded, sort_keys=True).encode()).hexdigest()[:32]


def _same(left: object, right: object) -> bool:
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def _rounded(value: object, parameter: Parameter | None) -> object:
    if isinstance(value, Mapping):
        return {name: f"{share:.9f}" for name, share in sorted(value.items())}
    if isinstance(parameter, Float) and isinstance(value, int | float):
        return f"{unit_of(parameter, float(value)):.10f}"
    return value


def linear_terms(parameters: Sequence[Parameter]) -> dict[str, tuple[float, float]]:
    """Every term a linear constraint may name, with its smallest and largest value."""
    terms: dict[str, tuple[float, float]] = {}
    for parameter in parameters:
        if isinstance(parameter, Float | Int) and not parameter.log:
            terms[parameter.name] = (float(parameter.low), float(parameter.high))
        elif isinstance(parameter, Mixture):
            for component in parameter.components:
                terms[f"{parameter.name}.{component.name}"] = (component.low, component.high)
    return terms
