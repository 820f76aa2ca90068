"""The wire form of parameters and linear constraints, and its translation to the search space."""

from __future__ import annotations

import math
import re
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, StrictInt

from bo_service.domain.free_json import MAX_NUMBER, text_flaw
from surrogates import parameters as space
from surrogates.space import LinearConstraint

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]
"""A letter or underscore, then letters, digits, underscores; so that `mixture.component` is unambiguous."""

MAX_TEXT: Final = 256


def _scalar(value: object) -> bool | int | float | str:
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) <= MAX_NUMBER):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str) and len(value) <= MAX_TEXT:
        if reason := text_flaw(value):
            raise ValueError(reason)
        return value
    raise ValueError(f"give a text of at most {MAX_TEXT} characters, a finite number, true or false")


def _number(value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_NUMBER:
        raise ValueError("give a finite number without quotes")
    return value


Scalar = Annotated[
    bool | int | float | str, PlainValidator(_scalar, json_schema_input_type=bool | int | float | str)
]
Number = Annotated[int | float, PlainValidator(_number, json_schema_input_type=int | float)]

MAX_CHOICES: Final = 256
MAX_COMPONENTS: Final = 100


class Model(BaseModel):
    """A frozen schema that refuses unknown fields and non-finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ActiveIf(Model):
    """Makes a parameter conditional: it exists only where its parent has one of these values."""

    parent: Name
    values: Annotated[list[Scalar], Field(min_length=1, max_length=MAX_CHOICES)]

    def condition(self) -> space.Condition:
        return space.Condition(parent=self.parent, values=tuple(self.values))


class _Parameter(Model):
    name: Name
    active_if: ActiveIf | None = None

    def _condition(self) -> space.Condition | None:
        return self.active_if.condition() if self.active_if else None


class FloatParameter(_Parameter):
    """A real number in [low, high]."""

    type: Literal["float"] = "float"
    low: Number
    high: Number
    scale: Literal["linear", "log"] = "linear"
    step: Number | None = None

    def compiled(self) -> space.Float:
        return space.Float(
            name=self.name,
            low=float(self.low),
            high=float(self.high),
            log=self.scale == "log",
            step=None if self.step is None else float(self.step),
            active_if=self._condition(),
        )


class IntParameter(_Parameter):
    """A whole number in [low, high]."""

    type: Literal["int"] = "int"
    low: Annotated[StrictInt, Field(ge=-(2**53), le=2**53)]
    high: Annotated[StrictInt, Field(ge=-(2**53), le=2**53)]
    scale: Literal["linear", "log"] = "linear"
    step: Annotated[StrictInt, Field(ge=1)] = 1

    def compiled(self) -> space.Int:
        return space.Int(
            name=self.name,
            low=self.low,
            high=self.high,
            log=self.scale == "log",
            step=self.step,
            active_if=self._condition(),
        )


class CategoricalParameter(_Parameter):
    """One of several values without an order."""

    type: Literal["categorical"] = "categorical"
    choices: Annotated[list[Scalar], Field(min_length=2, max_length=MAX_CHOICES)]

    def compiled(self) -> space.Categorical:
        return space.Categorical(name=self.name, choices=tuple(self.choices), active_if=self._condition())


class OrdinalParameter(_Parameter):
    """One of several values, numbers or strings, in the order given."""

    type: Literal["ordinal"] = "ordinal"
    levels: Annotated[list[Scalar], Field(min_length=2, max_length=MAX_CHOICES)]

    def compiled(self) -> space.Ordinal:
        return space.Ordinal(name=self.name, choices=tuple(self.levels), active_if=self._condition())


class BoolParameter(_Parameter):
    """True or false."""

    type: Literal["bool"] = "bool"

    def compiled(self) -> space.Bool:
        return space.Bool(name=self.name, active_if=self._condition())


class FixedParameter(_Parameter):
    """One value, handed to every trial and hidden from the model."""

    type: Literal["fixed"] = "fixed"
    value: Scalar

    def compiled(self) -> space.Fixed:
        return space.Fixed(name=self.name, value=self.value, active_if=self._condition())


class MixtureComponent(Model):
    """One named share and its bounds."""

    name: Name
    low: Annotated[Number, Field(ge=0, le=1)] = 0.0
    high: Annotated[Number, Field(ge=0, le=1)] = 1.0


class MixtureParameter(_Parameter):
    """Named shares, each within its bounds, that sum to 1."""

    type: Literal["mixture"] = "mixture"
    components: Annotated[list[MixtureComponent], Field(min_length=2, max_length=MAX_COMPONENTS)]

    def compiled(self) -> space.Mixture:
        return space.Mixture(
            name=self.name,
            components=tuple(
                space.Component(name=c.name, low=float(c.low), high=float(c.high)) for c in self.components
            ),
            active_if=self._condition(),
        )


AnyParameter = Annotated[
    FloatParameter
    | IntParameter
    | CategoricalParameter
    | OrdinalParameter
    | BoolParameter
    | FixedParameter
    | MixtureParameter,
    Field(discriminator="type"),
]

_TERM: Final = re.compile(
    r"(?P<sign>[+-]?)(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)\*?)?"
    r"(?P<term>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)?)?"
)


def _side(text: str) -> tuple[dict[str, float], float]:
    """Coefficients and constant of one side of a constraint such as `2*a - b + 1`."""
    compact = re.sub(r"\s+", "", text)
    if not compact:
        raise ValueError("one side is empty; write it like '2*a + mix.web - b <= 3'")
    coefficients: dict[str, float] = {}
    constant, position = 0.0, 0
    while position < len(compact):
        match = _TERM.match(compact, position)
        if match is None or (match["number"] is None and match["term"] is None):
            raise ValueError(f"cannot read {compact[position:]!r}; write it like '2*a + mix.web - b <= 3'")
        if position and not match["sign"]:
            raise ValueError(f"expected + or - before {compact[position:]!r}")
        number = float(match["number"] or 1) * (-1 if match["sign"] == "-" else 1)
        if match["term"]:
            coefficients[match["term"]] = coefficients.get(match["term"], 0.0) + number
        else:
            constant += number
        position = match.end()
    return coefficients, constant


def parse_constraint(text: object) -> object:
    """`2*a + mix.web <= 3` as coefficients, operator and bound; anything but a string passes through."""
    if not isinstance(text, str):
        return text
    sides = re.split(r"(<=|>=|==)", text)
    if len(sides) != 3:
        raise ValueError("write one of <=, >=, == between two sides, as in 'a + 2*b <= 3'")
    (left, left_constant), (right, right_constant) = _side(sides[0]), _side(sides[2])
    coefficients = dict(left)
    for term, number in right.items():
        coefficients[term] = coefficients.get(term, 0.0) - number
    return {
        "coefficients": {term: number for term, number in coefficients.items() if number != 0},
        "operator": sides[1],
        "bound": right_constant - left_constant,
    }


class Constraint(Model):
    """A linear constraint in user units, also accepted as text: `a + 2*mix.web <= 3`."""

    coefficients: Annotated[dict[str, Number], Field(min_length=1, max_length=200)]
    operator: Literal["<=", ">=", "=="]
    bound: Number

    def compiled(self) -> LinearConstraint:
        return LinearConstraint(
            coefficients={term: float(number) for term, number in self.coefficients.items()},
            operator=self.operator,
            bound=float(self.bound),
        )


AnyConstraint = Annotated[
    Constraint, BeforeValidator(parse_constraint, json_schema_input_type=Constraint | str)
]
