"""The polytope that linear constraints, ranges and sums of shares cut out, and random walks inside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.linalg import null_space
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from surrogates.encoding import Array, Encoding, encode_fixed
from surrogates.errors import EmptyRegion, Problem
from surrogates.parameters import Configuration, Float, Int, Mixture, Shares, Value
from surrogates.space import SearchSpace

STEPS_A_DIMENSION: Final = 12
"""Hit-and-run steps from the centre for one point, for each free dimension."""

MIN_STEPS: Final = 30

FLAT: Final = 1e-7
"""A polytope whose largest ball has a smaller radius has no inside: some of its inequalities are equalities."""

GRID_TOLERANCE: Final = 1e-9
GRID_SECONDS: Final = 0.25
"""An integer program that takes longer is given up."""


@dataclass(frozen=True, slots=True)
class Polytope:
    """{x: equalities, inequalities, 0 <= x <= 1} in the features of the parameters that constraints name."""

    encoding: Encoding
    parameters: tuple[str, ...]
    columns: tuple[int, ...]
    directions: Array
    """(d, free), an orthonormal basis of the moves that keep the equalities."""
    upper: Array
    """(m, d) rows a with a.x <= b."""
    bound: Array
    """(m,)"""
    equal: Array
    """(k, d) rows a with a.x == b."""
    right: Array
    """(k,)"""
    centre: Array
    """(d,), the centre of the largest ball inside (Chebyshev)."""

    def walk(self, rng: np.random.Generator) -> Array:
        """A point (d,) near uniformly distributed: hit-and-run from the centre."""
        x = self.centre.copy()
        n_free = self.directions.shape[1]
        if n_free == 0:
            return x
        for _ in range(max(MIN_STEPS, STEPS_A_DIMENSION * n_free)):
            direction = self.directions @ rng.standard_normal(n_free)
            speed = self.upper @ direction
            room = np.maximum(self.bound - self.upper @ x, 0.0)
            moving = np.abs(speed) > 1e-12
            ends = room[moving] / speed[moving]
            forward = ends[speed[moving] > 0].min(initial=np.inf)
            backward = ends[speed[moving] < 0].max(initial=-np.inf)
            if np.isfinite(forward) and np.isfinite(backward):
                x = x + (backward + rng.random() * (forward - backward)) * direction
        return x

    def on_grid(self, rng: np.random.Generator) -> Array | None:
        """A point (d,) whose numbers lie on their grids, extreme in a random direction; None where none was found."""
        steps = np.ones(len(self.columns))
        is_grid = np.zeros(len(self.columns))
        for name in self.parameters:
            parameter, block = self.encoding.space[name], self.encoding.block(name)
            if isinstance(parameter, Int | Float) and parameter.step is not None and not parameter.log:
                assert block is not None
                column = self.columns.index(block.columns.start)
                steps[column] = parameter.step / (parameter.high - parameter.low)
                is_grid[column] = 1.0
        constraints = [LinearConstraint(self.upper * steps, -np.inf, self.bound + GRID_TOLERANCE)]
        if len(self.equal):
            constraints.append(
                LinearConstraint(self.equal * steps, self.right - GRID_TOLERANCE, self.right + GRID_TOLERANCE)
            )
        result = milp(
            rng.standard_normal(len(steps)) * steps,
            integrality=is_grid,
            bounds=Bounds(0.0, 1.0 / steps),
            constraints=constraints,
            options={"time_limit": GRID_SECONDS},
        )
        if result.x is None:
            return None
        found: Array = np.where(is_grid > 0, np.round(result.x), result.x) * steps
        return found

    def applied(self, x: Array, configuration: Configuration) -> dict[str, Value | Shares]:
        """The configuration with its linear parameters at this point, snapped."""
        (row,) = self.encoding.encode([configuration])
        row[list(self.columns)] = x
        decoded = self.encoding.decode(row)
        return {
            name: decoded[name] if name in self.parameters else value  # type: ignore[misc]
            for name, value in configuration.items()
        }


def linear_polytope(space: SearchSpace, configuration: Configuration, fixed: Mapping[str, Any]) -> Polytope:
    """The polytope of the constraints that bind in this configuration, parameters in `fixed` held.

    Raises: EmptyRegion.
    """
    encoding = Encoding(space)
    binding = [row for row in encoding.linear if all(name in configuration for name in row.parameters)]
    explicit = {name for row in binding for name in row.parameters if not isinstance(space[name], Mixture)}
    explicit |= {c.partition(".")[0] for constraint in space.constraints for c in constraint.coefficients}
    names = tuple(p.name for p in space if p.name in explicit and p.name in configuration)
    columns = tuple(
        column
        for name in names
        if (block := encoding.block(name)) is not None
        for column in range(block.columns.start, block.columns.stop)
    )
    rows = [row for row in binding if set(row.parameters) <= set(names)]
    pinned = encode_fixed(encoding, {name: fixed[name] for name in names if name in fixed})
    return _solved(encoding, names, columns, rows, pinned)


def _solved(
    encoding: Encoding,
    names: tuple[str, ...],
    columns: tuple[int, ...],
    rows: list[Any],
    pinned: dict[int, float],
) -> Polytope:
    d = len(columns)
    equal = [(row.weights[list(columns)], row.bound) for row in rows if row.operator == "=="]
    equal += [(np.eye(d)[columns.index(column)], value) for column, value in pinned.items()]
    signs = {"<=": 1.0, ">=": -1.0}
    upper = np.array(
        [signs[row.operator] * row.weights[list(columns)] for row in rows if row.operator != "=="]
        + [*np.eye(d), *-np.eye(d)]
    )
    bound = np.array(
        [signs[row.operator] * row.bound for row in rows if row.operator != "=="] + [1.0] * d + [0.0] * d
    )
    matrix = np.array([weights for weights, _ in equal]).reshape(-1, d)
    right = np.array([value for _, value in equal])
    ball = _largest_ball(upper, bound, matrix, right)
    if ball is not None and ball.radius < FLAT and ball.directions.shape[1]:
        rigid = _rigid_rows(upper, bound, matrix, right)
        matrix, right = np.r_[matrix, upper[rigid]], np.r_[right, bound[rigid]]
        upper, bound = upper[~rigid], bound[~rigid]
        ball = _largest_ball(upper, bound, matrix, right)
    if ball is None:
        raise EmptyRegion([Problem("constraints", f"no values of {', '.join(names)} meet all of them")])
    return Polytope(encoding, names, columns, ball.directions, upper, bound, matrix, right, ball.centre)


@dataclass(frozen=True, slots=True)
class _Ball:
    """The largest ball in a polytope, within the affine subspace of its equalities."""

    centre: Array
    """(d,)"""
    radius: float
    directions: Array
    """(d, free), an orthonormal basis of the subspace."""


def _largest_ball(upper: Array, bound: Array, matrix: Array, right: Array) -> _Ball | None:
    """None where the polytope is empty."""
    d = upper.shape[1]
    directions = null_space(matrix) if len(matrix) else np.eye(d)
    # only the part of a row that lies in the subspace counts
    radii = np.linalg.norm(upper @ directions, axis=1) if directions.shape[1] else np.zeros(len(upper))
    result = linprog(
        c=np.r_[np.zeros(d), -1.0],
        A_ub=np.c_[upper, radii],
        b_ub=bound + 1e-12,
        A_eq=np.c_[matrix, np.zeros(len(matrix))] if len(matrix) else None,
        b_eq=right if len(matrix) else None,
        bounds=[(None, None)] * d + [(0.0, 1.0)],
        method="highs",
    )
    if result.status != 0 or result.x is None:
        return None
    return _Ball(np.asarray(result.x[:d]), float(result.x[d]), directions)


def _rigid_rows(
    upper: Array, bound: Array, matrix: Array, right: Array
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(m,), which inequalities are equalities all over the polytope: their slacks cannot be made positive.

    Freund, Roundy and Todd 1985, "Identifying the set of always-active constraints in a system of linear
    inequalities by a single linear program": here by several, each of which sets at least one further row free.
    """
    d = upper.shape[1]
    rigid = np.ones(len(upper), dtype=bool)
    while rigid.any():
        slack = np.eye(len(upper))[:, rigid]
        n = slack.shape[1]
        result = linprog(
            c=np.r_[np.zeros(d), -np.ones(n)],
            A_ub=np.c_[upper, slack],
            b_ub=bound + 1e-12,
            A_eq=np.c_[matrix, np.zeros((len(matrix), n))] if len(matrix) else None,
            b_eq=right if len(matrix) else None,
            bounds=[(None, None)] * d + [(0.0, 1.0)] * n,
            method="highs",
        )
        if result.x is None:
            break
        free = np.flatnonzero(rigid)[result.x[d:] > FLAT]
        if not len(free):
            break
        rigid[free] = False
    return rigid
