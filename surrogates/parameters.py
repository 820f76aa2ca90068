"""The kinds of parameter: what each accepts, its canonical value and its centre (standard library only)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

Value = float | int | str | bool
Shares = dict[str, float]
Configuration = Mapping[str, Value | Mapping[str, float]]
"""Parameter name -> value; a mixture's value maps component -> share; inactive parameters are absent."""

SHARE_TOLERANCE: Final = 1e-6
"""How far from 1 the shares a user gives may sum before they are refused."""

SHARE_DIGITS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Active only where `parent` has one of `values` (and is active itself)."""

    parent: str
    values: tuple[Value, ...]


LARGEST: Final = 1.7976931348623157e308
"""The largest double: integers may lie beyond."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Float:
    """A real number in [low, high]; `step` counts from low; `log` spreads it over decades."""

    name: str
    low: float
    high: float
    log: bool = False
    step: float | None = None
    active_if: Condition | None = None

    @property
    def n_free(self) -> int:
        return 1

    @property
    def n_levels(self) -> float:
        return math.inf if self.step is None else math.floor((self.high - self.low) / self.step + 1e-9) + 1

    def expects(self) -> str:
        grid = f" in steps of {self.step:g}" if self.step is not None else ""
        return f"give a number from {self.low:g} to {self.high:g}{grid}"

    def refuses(self, value: object) -> str | None:
        """Why the value is not allowed, or None."""
        if not _is_number(value):
            return f"{value!r} is not a finite number"
        slack = 1e-12 * max(abs(self.low), abs(self.high))
        if not self.low - slack <= _number(value) <= self.high + slack:
            return f"{value:g} is outside [{self.low:g}, {self.high:g}]"
        if self.step is not None:
            n_steps = (_number(value) - self.low) / self.step
            if abs(n_steps - round(n_steps)) > 1e-6:
                return f"{value:g} is off the grid of step {self.step:g} from {self.low:g}"
        return None

    def canonical(self, value: object) -> float:
        """The value as a float on the grid and inside the bounds."""
        number = float(_number(value))
        if self.step is not None:
            index = min(max(round((number - self.low) / self.step), 0), int(self.n_levels) - 1)
            number = round(self.low + index * self.step, 12)
        return min(max(number, self.low), self.high)

    def centre(self) -> float:
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return self.canonical(middle)


@dataclass(frozen=True, slots=True, kw_only=True)
class Int:
    """A whole number in [low, high]; `step` counts from low; `log` spreads it over decades."""

    name: str
    low: int
    high: int
    log: bool = False
    step: int = 1
    active_if: Condition | None = None

    @property
    def n_free(self) -> int:
        return 1

    @property
    def n_levels(self) -> float:
        return (self.high - self.low) // self.step + 1

    def expects(self) -> str:
        grid = f" in steps of {self.step}" if self.step != 1 else ""
        return f"give a whole number from {self.low} to {self.high}{grid}"

    def refuses(self, value: object) -> str | None:
        """Why the value is not allowed, or None."""
        if not _is_number(value) or _number(value) != int(_number(value)):
            return f"{value!r} is not a whole number"
        if not self.low <= _number(value) <= self.high:
            return f"{value} is outside [{self.low}, {self.high}]"
        if (int(_number(value)) - self.low) % self.step:
            return f"{value} is off the grid of step {self.step} from {self.low}"
        return None

    def canonical(self, value: object) -> int:
        """The nearest whole number on the grid and inside the bounds."""
        index = round((_number(value) - self.low) / self.step)
        return self.low + min(max(index, 0), int(self.n_levels) - 1) * self.step

    def centre(self) -> int:
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return self.canonical(middle)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """One of several values."""

    name: str
    choices: tuple[Value, ...]
    active_if: Condition | None = None

    @property
    def n_free(self) -> int:
        return 1

    @property
    def n_levels(self) -> float:
        return len(self.choices)

    def index(self, value: object) -> int | None:
        """Position of the value among the choices; 1 and 1.0 are one value, 1 and true are two."""
        for position, choice in enumerate(self.choices):
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return position
        return None

    def expects(self) -> str:
        shown = ", ".join(map(repr, self.choices[:12]))
        return f"give one of {shown}{', ...' if len(self.choices) > 12 else ''}"

    def refuses(self, value: object) -> str | None:
        """Why the value is not allowed, or None."""
        return f"{value!r} is not one of the choices" if self.index(value) is None else None

    def canonical(self, value: object) -> Value:
        position = self.index(value)
        assert position is not None
        return self.choices[position]


class Categorical(_Choice):
    """One of several values without an order."""

    __slots__ = ()

    def centre(self) -> Value:
        return self.choices[0]


class Ordinal(_Choice):
    """One of several values, numbers or strings, in the order given."""

    __slots__ = ()

    def centre(self) -> Value:
        return self.choices[len(self.choices) // 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bool:
    """True or false."""

    name: str
    active_if: Condition | None = None

    @property
    def n_free(self) -> int:
        return 1

    @property
    def n_levels(self) -> float:
        return 2

    @property
    def choices(self) -> tuple[bool, bool]:
        return (False, True)

    def index(self, value: object) -> int | None:
        return int(value) if isinstance(value, bool) else None

    def expects(self) -> str:
        return "give true or false"

    def refuses(self, value: object) -> str | None:
        """Why the value is not allowed, or None."""
        return None if isinstance(value, bool) else f"{value!r} is not true or false"

    def canonical(self, value: object) -> bool:
        return bool(value)

    def centre(self) -> bool:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """One value, handed to every trial and hidden from the model."""

    name: str
    value: Value
    active_if: Condition | None = None

    @property
    def n_free(self) -> int:
        return 0

    @property
    def n_levels(self) -> float:
        return 1

    def expects(self) -> str:
        return f"leave it out or give {self.value!r}"

    def refuses(self, value: object) -> str | None:
        """Why the value is not allowed, or None."""
        same = value == self.value and isinstance(value, bool) == isinstance(self.value, bool)
        return None if same else f"{value!r} differs from the fixed value"

    def canonical(self, value: object) -> Value:
        del value
        return self.value

    def centre(self) -> Value:
        return self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One named share of a mixture and its bounds."""

    name: str
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Named shares, each within its bounds, that sum to 1."""

    name: str
    components: tuple[Component, ...]
    active_if: Condition | None = None

    @property
    def n_free(self) -> int:
        return len(self.components) - 1

    @property
    def n_levels(self) -> float:
        return math.inf

    def expects(self) -> str:
        names = ", ".join(component.name for component in self.components)
        return f"give a share for each of {names}; together 1"

    def refuses(self, value: object) -> str | None:
        """Why the value is not allowed, or None."""
        if not isinstance(value, Mapping):
            return f"{value!r} is not a mapping of component to share"
        names = {component.name for component in self.components}
        if strangers := sorted(map(str, set(value) - names)):
            return f"has no component {', '.join(strangers)}"
        if missing := sorted(names - set(value)):
            return f"lacks a share for {', '.join(missing)}"
        for component in self.components:
            share = value[component.name]
            if not _is_number(share):
                return f"share {component.name} = {share!r} is not a finite number"
            if not component.low - SHARE_TOLERANCE <= share <= component.high + SHARE_TOLERANCE:
                return (
                    f"share {component.name} = {share:g} is outside [{component.low:g}, {component.high:g}]"
                )
        total = math.fsum(value.values())
        return None if abs(total - 1) <= SHARE_TOLERANCE else f"shares sum to {total:g}, not 1"

    def canonical(self, value: object) -> Shares:
        """Shares inside their bounds, rounded to 12 digits, that sum to 1 within 1e-12."""
        assert isinstance(value, Mapping)
        shares = {
            c.name: round(min(max(float(value[c.name]), c.low), c.high), SHARE_DIGITS)
            for c in self.components
        }
        for component in sorted(self.components, key=lambda c: -shares[c.name]):
            gap = 1.0 - math.fsum(shares.values())
            if abs(gap) <= 1e-15:
                break
            moved = min(max(shares[component.name] + gap, component.low), component.high)
            shares[component.name] = round(moved, 15)
        return shares

    def centre(self) -> Shares:
        """The point that stands at the same fraction of every component's range."""
        lows = math.fsum(c.low for c in self.components)
        width = math.fsum(c.high - c.low for c in self.components)
        fraction = (1.0 - lows) / width if width > 0 else 0.0
        return self.canonical({c.name: c.low + fraction * (c.high - c.low) for c in self.components})


Parameter = Float | Int | Categorical | Ordinal | Bool | Fixed | Mixture


def unit_of(parameter: Float | Int, value: float) -> float:
    """A number's place in its range, in [0, 1]."""
    if parameter.log:
        low, high = math.log(parameter.low), math.log(parameter.high)
        return (math.log(value) - low) / (high - low)
    # halves first: the width of a very wide range overflows
    half_width = parameter.high / 2 - parameter.low / 2
    return (value / 2 - parameter.low / 2) / half_width
