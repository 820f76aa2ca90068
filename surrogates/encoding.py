"""Configurations as model features: numbers in [0, 1], one-hot categories, shares; and back, snapped and exact."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
from surrogates.space import SearchSpace

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LinearRow:
    """A linear constraint in feature units: weights @ x (operator) bound, where all `parameters` are active."""

    weights: Array
    """(d,)"""
    operator: str
    bound: float
    parameters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """The feature columns of one parameter."""

    parameter: Parameter
    columns: slice
    centre: Array
    """(width,), what stands there while the parameter is inactive."""


def share_ranges(mixture: Mixture) -> tuple[Array, Array]:
    """Smallest and largest reachable share of each component, both (k,): bounds cut by the sum of 1."""
    low = np.array([c.low for c in mixture.components])
    high = np.array([c.high for c in mixture.components])
    reach_low = np.maximum(low, 1.0 - (high.sum() - high))
    reach_high = np.minimum(high, 1.0 - (low.sum() - low))
    return reach_low, np.maximum(reach_high, reach_low)


def repaired_shares(shares: Array, mixture: Mixture) -> Array:
    """The shares (k,) clipped to their bounds and moved, in proportion to the room left, to a sum of 1."""
    low = np.array([c.low for c in mixture.components])
    high = np.array([c.high for c in mixture.components])
    result = np.clip(shares, low, high)
    gap = 1.0 - result.sum()
    room = (high - result) if gap > 0 else (result - low)
    if room.sum() > 0:
        result = result + gap * room / room.sum()
    return np.clip(result, low, high)


class Encoding:
    """Features of a search space: float64 in [0, 1], inactive parameters held at their centre.

    A float or int is one column (log first if on a log scale), an ordinal or bool one, a categorical one for
    each choice, a mixture one for each share scaled to its reachable range, a fixed parameter none.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        blocks: list[Block] = []
        start = 0
        for parameter in space:
            width = _width(parameter)
            if width:
                centre = _encode_value(parameter, parameter.centre())
                blocks.append(Block(parameter, slice(start, start + width), centre))
                start += width
        self.blocks = tuple(blocks)
        self.n_features = start
        self._block_of = {block.parameter.name: block for block in blocks}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A name for each column: `lr`, `model=mlp`, `mix.web`."""
        names: list[str] = []
        for block in self.blocks:
            p = block.parameter
            if isinstance(p, Categorical):
                names += [f"{p.name}={choice}" for choice in p.choices]
            elif isinstance(p, Mixture):
                names += [f"{p.name}.{component.name}" for component in p.components]
            else:
                names.append(p.name)
        return tuple(names)

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Columns that share one lengthscale: those of a categorical together, every other alone."""
        groups: list[tuple[int, ...]] = []
        for block in self.blocks:
            columns = tuple(range(block.columns.start, block.columns.stop))
            groups += [columns] if isinstance(block.parameter, Categorical) else [(c,) for c in columns]
        return tuple(groups)

    @cached_property
    def is_box(self) -> bool:
        """Whether every point of the unit cube is a configuration: no mixture, no linear constraint."""
        return not self.space.constraints and not any(isinstance(b.parameter, Mixture) for b in self.blocks)

    def block(self, name: str) -> Block | None:
        """The columns of a parameter; None for a fixed one."""
        return self._block_of.get(name)

    def encode(self, configurations: Sequence[Configuration]) -> Array:
        """Canonical configurations as rows (n, d)."""
        features = np.empty((len(configurations), self.n_features))
        for row, configuration in zip(features, configurations, strict=True):
            for block in self.blocks:
                value = configuration.get(block.parameter.name)
                row[block.columns] = block.centre if value is None else _encode_value(block.parameter, value)
        return features

    def decode(self, row: Array) -> dict[str, Value | Shares]:
        """The nearest canonical configuration of a row (d,): snapped to grids, shares exact, inactive left out."""
        configuration: dict[str, Value | Shares] = {}
        for parameter in self.space:
            if not self.space.is_active(parameter, configuration):
                continue
            if isinstance(parameter, Fixed):
                configuration[parameter.name] = parameter.value
            else:
                configuration[parameter.name] = _decode_value(
                    parameter, row[self._block_of[parameter.name].columns]
                )
        return configuration

    def imputed(self, features: Array) -> Array:
        """The rows (n, d) with columns of inactive parameters at their centre."""
        if not self.space.is_conditional:
            return features
        result = features.copy()
        for block, active in self._activity(result):
            result[~active, block.columns] = block.centre
        return result

    def active_columns(self, features: Array) -> NDArray[np.bool_]:
        """Which columns have a meaning in each row, (n, d)."""
        mask = np.ones(features.shape, dtype=bool)
        if self.space.is_conditional:
            for block, active in self._activity(features):
                mask[~active, block.columns] = False
        return mask

    def _activity(self, features: Array) -> list[tuple[Block, NDArray[np.bool_]]]:
        """For every conditional parameter, in which rows it is active."""
        everywhere = np.ones(len(features), dtype=bool)
        active: dict[str, NDArray[np.bool_]] = {}
        found: list[tuple[Block, NDArray[np.bool_]]] = []
        for parameter in self.space:
            condition = parameter.active_if
            if condition is None:
                active[parameter.name] = everywhere
                continue
            parent = self.space[condition.parent]
            block = self._block_of.get(parent.name)
            if block is None:
                assert isinstance(parent, Fixed)
                holds = everywhere if parent.value in condition.values else ~everywhere
            else:
                holds = _takes(parent, features[:, block.columns], condition.values)
            active[parameter.name] = active[parent.name] & holds
            own = self._block_of.get(parameter.name)
            if own is not None:
                found.append((own, active[parameter.name]))
        return found

    @cached_property
    def linear(self) -> tuple[LinearRow, ...]:
        """The linear constraints, and each mixture's sum, in feature units."""
        rows: list[LinearRow] = []
        for block in self.blocks:
            if isinstance(block.parameter, Mixture):
                low, high = share_ranges(block.parameter)
                weights = np.zeros(self.n_features)
                weights[block.columns] = high - low
                rows.append(LinearRow(weights, "==", 1.0 - float(low.sum()), (block.parameter.name,)))
        for constraint in self.space.constraints:
            weights, bound = np.zeros(self.n_features), constraint.bound
            for term, coefficient in constraint.coefficients.items():
                column, low_value, width = self._term(term)
                weights[column] += coefficient * width
                bound -= coefficient * low_value
            names = tuple(dict.fromkeys(term.partition(".")[0] for term in constraint.coefficients))
            rows.append(LinearRow(weights, constraint.operator, bound, names))
        return tuple(rows)

    def _term(self, term: str) -> tuple[int, float, float]:
        """Column, value at 0 and value range of a term of a linear constraint."""
        name, _, component = term.partition(".")
        block = self._block_of[name]
        parameter = block.parameter
        if isinstance(parameter, Mixture):
            position = [c.name for c in parameter.components].index(component)
            low, high = share_ranges(parameter)
            return block.columns.start + position, float(low[position]), float(high[position] - low[position])
        assert isinstance(parameter, Float | Int)
        return block.columns.start, float(parameter.low), float(parameter.high - parameter.low)


def _width(parameter: Parameter) -> int:
    if isinstance(parameter, Fixed):
        return 0
    if isinstance(parameter, Mixture):
        return len(parameter.components)
    return len(parameter.choices) if isinstance(parameter, Categorical) else 1


def value_at(parameter: Float | Int, unit: float) -> float:
    """The number at a place in [0, 1] of its range, before snapping."""
    if parameter.log:
        low, high = math.log(parameter.low), math.log(parameter.high)
        return math.exp(low + min(max(unit, 0.0), 1.0) * (high - low))
    return parameter.low * (1.0 - unit) + parameter.high * unit


def _encode_value(parameter: Parameter, value: Any) -> Array:
    if isinstance(parameter, Float | Int):
        return np.array([unit_of(parameter, float(value))])
    if isinstance(parameter, Mixture):
        low, high = share_ranges(parameter)
        shares = np.array([value[c.name] for c in parameter.components])
        width = np.where(high > low, high - low, 1.0)
        return np.where(high > low, (shares - low) / width, 0.0)
    assert not isinstance(parameter, Fixed)
    position = parameter.index(value)
    assert position is not None
    if isinstance(parameter, Categorical):
        one_hot = np.zeros(len(parameter.choices))
        one_hot[position] = 1.0
        return one_hot
    return np.array([position / (len(parameter.choices) - 1)])


def _decode_value(parameter: Parameter, columns: Array) -> Value | Shares:
    if isinstance(parameter, Float | Int):
        return parameter.canonical(value_at(parameter, float(columns[0])))
    if isinstance(parameter, Mixture):
        low, high = share_ranges(parameter)
        shares = repaired_shares(low + columns * (high - low), parameter)
        return parameter.canonical(
            {c.name: float(s) for c, s in zip(parameter.components, shares, strict=True)}
        )
    assert not isinstance(parameter, Fixed)
    return parameter.choices[int(_positions(parameter, columns[None, :])[0])]


def _positions(parameter: Categorical | Ordinal | Bool, columns: Array) -> NDArray[np.intp]:
    """Index of the choice in each row of the parameter's columns."""
    if isinstance(parameter, Categorical):
        return columns.argmax(axis=1)
    top = len(parameter.choices) - 1
    # half a step up goes up, so that the middle of a bool is True
    return np.clip(np.floor(columns[:, 0] * top + 0.5), 0, top).astype(np.intp)


def _takes(parameter: Parameter, columns: Array, values: Sequence[Value]) -> NDArray[np.bool_]:
    """In which rows the parameter has one of these values."""
    if isinstance(parameter, Int):
        decoded = np.array([parameter.canonical(value_at(parameter, float(u))) for u in columns[:, 0]])
        return np.isin(decoded, np.array([float(v) for v in values]))
    assert isinstance(parameter, Categorical | Ordinal | Bool)
    wanted = [position for v in values if (position := parameter.index(v)) is not None]
    return np.isin(_positions(parameter, columns), wanted)


def encode_fixed(encoding: Encoding, fixed: Mapping[str, Any]) -> dict[int, float]:
    """Column -> feature for parameters held at a value."""
    pinned: dict[int, float] = {}
    for name, value in fixed.items():
        block = encoding.block(name)
        if block is not None:
            features = _encode_value(block.parameter, value)
            pinned |= {block.columns.start + i: float(f) for i, f in enumerate(features)}
    return pinned
