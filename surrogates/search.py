"""The acquisition optimiser: raw points, a few local climbs, snapping, neighbours on the grids; never a repeat.

Generic over the acquisition. Mixtures are climbed in free coordinates (`charts`), further linear constraints
by SLSQP with analytic gradients, everything else by L-BFGS-B.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final

import numpy as np
from scipy.optimize import fmin_l_bfgs_b, minimize

from surrogates.charts import Chart
from surrogates.encoding import Array, Encoding, encode_fixed
from surrogates.errors import EmptyRegion
from surrogates.parameters import Bool, Categorical, Fixed, Float, Int, Mixture, Ordinal, Shares, Value
from surrogates.sampling import moved_inside, random_configurations

ValueOf = Callable[[Array], Array]
"""(n, d) -> (n,); larger is better."""

ValueAndGradient = Callable[[Array], tuple[Array, Array]]
"""(n, d) -> (n,), (n, d)"""

MAX_ENUMERATED: Final = 5_000
MAX_ROUNDS: Final = 4
N_CLIMBED_ON_GRID: Final = 2
N_LAST_DRAWS: Final = 256


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is spent on one suggestion; the defaults are the measured recipe."""

    n_raw: int = 512
    n_local: int = 32
    n_starts: int = 4
    max_iterations: int = 50
    is_joint: bool = False
    """One climb of all starts together: right where a call costs much and a row little."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A configuration with its features (d,) and acquisition value."""

    configuration: dict[str, Value | Shares]
    value: float
    features: Array


@dataclass(slots=True)
class _Search:
    value: ValueOf
    value_and_gradient: ValueAndGradient
    encoding: Encoding
    rng: np.random.Generator
    fixed: Mapping[str, Any]
    effort: Effort
    pinned: dict[int, float] = field(init=False)
    chart: Chart = field(init=False)

    def __post_init__(self) -> None:
        self.pinned = encode_fixed(self.encoding, self.fixed)
        self.chart = Chart(self.encoding)

    def raw(self, incumbents: Array) -> tuple[Array, Array]:
        """Feasible raw rows: at least one uniform one, and perturbations of the incumbents. Raises: EmptyRegion."""
        uniform = self._feasible(self._uniform(self.effort.n_raw))
        if len(uniform) < max(8, self.effort.n_raw // 32):
            try:
                drawn = random_configurations(self.encoding.space, 32, rng=self.rng, fixed=self.fixed)
            except EmptyRegion:
                if not len(uniform):
                    raise
                drawn = []
            uniform = np.concatenate([uniform, self.encoding.encode(drawn)])
        local = self._feasible(self._perturbed(incumbents)) if len(incumbents) else uniform[:0]
        return uniform, local

    def _uniform(self, n: int) -> Array:
        z = self.rng.random((n, self.chart.n_coordinates))
        for block in self.encoding.blocks:
            if isinstance(block.parameter, Mixture):
                # stick coordinates uniform on the simplex: 1 - (1 - u)^(1 / components after)
                part = self.chart.coordinates_of_mixture(block.columns)
                after = np.arange(part.stop - part.start, 0, -1)
                z[:, part] = 1.0 - (1.0 - z[:, part]) ** (1.0 / after)
        return self._completed(self.chart.features(z))

    def _perturbed(self, incumbents: Array) -> Array:
        base = self.chart.coordinates(
            incumbents[self.rng.integers(len(incumbents), size=self.effort.n_local)]
        )
        n, m = base.shape
        sd = 10.0 ** self.rng.uniform(-3.0, -0.5, size=(n, 1))
        moved = self.rng.random((n, m)) < max(0.3, 2.0 / max(m, 1))
        return self._completed(
            self.chart.features(np.clip(base + sd * moved * self.rng.standard_normal((n, m)), 0, 1))
        )

    def _completed(self, x: Array) -> Array:
        """Rows with one-hot categories, pinned columns and imputed inactive parameters."""
        for block in self.encoding.blocks:
            if isinstance(block.parameter, Categorical):
                one_hot = np.zeros((len(x), block.columns.stop - block.columns.start))
                one_hot[np.arange(len(x)), x[:, block.columns].argmax(axis=1)] = 1.0
                x[:, block.columns] = one_hot
            elif isinstance(block.parameter, Bool):
                x[:, block.columns] = np.round(x[:, block.columns])
        for column, value in self.pinned.items():
            x[:, column] = value
        return self.encoding.imputed(x)

    def _feasible(self, x: Array) -> Array:
        if not self.encoding.space.constraints:
            return x
        keep = np.ones(len(x), dtype=bool)
        active = self.encoding.active_columns(x)
        for row in self.encoding.linear:
            left = x @ row.weights
            binds = active[:, self._columns_of(row.parameters)].all(axis=1)
            slack = {"<=": row.bound - left, ">=": left - row.bound, "==": -np.abs(left - row.bound)}[
                row.operator
            ]
            keep = keep & (~binds | (slack >= -1e-9))
        return x[keep]

    def _columns_of(self, parameters: Sequence[str]) -> list[int]:
        """The first column of each: a parameter is active with all its columns or with none."""
        blocks = (self.encoding.block(name) for name in parameters)
        return [block.columns.start for block in blocks if block is not None]

    def starts(self, uniform: Array, local: Array) -> Array:
        """The best raw row, the best local one, and others drawn by Boltzmann weights."""
        rows = np.concatenate([uniform, local])
        values = np.nan_to_num(self.value(rows), nan=-np.inf, neginf=-1e300, posinf=1e300)
        chosen = [int(values[: len(uniform)].argmax())]
        if len(local):
            chosen.append(len(uniform) + int(values[len(uniform) :].argmax()))
        spread = values.std()
        scaled = (values - values.max()) / (spread if np.isfinite(spread) and spread > 0 else 1.0)
        weights = np.exp(scaled)
        weights[chosen] = 0.0
        n_more = min(self.effort.n_starts - len(chosen), int((weights > 0).sum()))
        if n_more > 0:
            chosen += self.rng.choice(
                len(rows), size=n_more, replace=False, p=weights / weights.sum()
            ).tolist()
        return rows[chosen]

    def climbed(self, starts: Array) -> Array:
        """The starts after local optimisation of their continuous, active, unpinned columns."""
        if self.encoding.space.constraints:
            return np.stack([self._climb_constrained(row) for row in starts])
        if self.effort.is_joint:
            return self._climb(starts)
        return np.concatenate([self._climb(row[None, :]) for row in starts])

    def _movable(self, x: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
        movable = self.encoding.active_columns(x)
        for block in self.encoding.blocks:
            if isinstance(block.parameter, Categorical | Bool):
                movable[:, block.columns] = False
        movable[:, list(self.pinned)] = False
        return movable

    def _climb(self, x: Array) -> Array:
        start = self.chart.coordinates(x)
        # inside by a hair: a mixture's corner has no slope to leave it by
        start = (
            np.clip(start, 1e-6, 1 - 1e-6) if self.chart.n_coordinates < self.encoding.n_features else start
        )
        movable = self._movable_coordinates(x)

        def negative(flat: Array) -> tuple[float, Array]:
            z = flat.reshape(start.shape)
            values, gradient = self.value_and_gradient(self._held(self.chart.features(z), x))
            slope = np.where(movable, self.chart.pulled_back(z, gradient), 0.0)
            if not (np.all(np.isfinite(values)) and np.all(np.isfinite(slope))):
                return 1e10, np.zeros(flat.shape)
            return -float(values.sum()), -slope.ravel()

        bounds = [
            (0.0, 1.0) if free else (s, s) for s, free in zip(start.ravel(), movable.ravel(), strict=True)
        ]
        best, _, _ = fmin_l_bfgs_b(
            negative,
            start.ravel(),
            bounds=bounds,
            m=10,
            factr=1e9,
            pgtol=1e-4,
            maxiter=self.effort.max_iterations,
        )
        return self._held(self.chart.features(np.asarray(best).reshape(start.shape)), x)

    def _movable_coordinates(self, x: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
        columns = self._movable(x)
        movable = np.zeros((len(x), self.chart.n_coordinates), dtype=bool)
        for block in self.encoding.blocks:
            if isinstance(block.parameter, Mixture):
                part = self.chart.coordinates_of_mixture(block.columns)
                movable[:, part] = columns[:, [block.columns.start]]
            else:
                for column in range(block.columns.start, block.columns.stop):
                    coordinate = self.chart.coordinate_of(column)
                    movable[:, coordinate] = columns[:, column]
        return movable

    def _held(self, features: Array, original: Array) -> Array:
        """Features whose immovable columns are as they were."""
        return np.where(self._movable(original), features, original)

    def _climb_constrained(self, row: Array) -> Array:
        movable = np.flatnonzero(self._movable(row[None, :])[0])
        if not len(movable):
            return row
        active = self.encoding.active_columns(row[None, :])[0]

        def full(part: Array) -> Array:
            x = row.copy()
            x[movable] = part
            return x

        def negative(part: Array) -> tuple[float, Array]:
            values, gradient = self.value_and_gradient(full(part)[None, :])
            fine = np.isfinite(values[0]) and np.all(np.isfinite(gradient))
            return (-float(values[0]), -gradient[0, movable]) if fine else (1e10, np.zeros(len(part)))

        constraints = []
        for linear in self.encoding.linear:
            weights = linear.weights[movable]
            if not active[self._columns_of(linear.parameters)].all() or not np.any(weights):
                continue
            rest = linear.bound - float(linear.weights @ full(np.zeros(len(movable))))
            sign = -1.0 if linear.operator == "<=" else 1.0
            constraints.append(
                {
                    "type": "eq" if linear.operator == "==" else "ineq",
                    "fun": lambda part, w=weights, b=rest, s=sign: s * (w @ part - b),
                    "jac": lambda part, w=weights, s=sign: s * w,  # noqa: ARG005
                }
            )
        result = minimize(
            negative,
            row[movable],
            jac=True,
            method="SLSQP",
            bounds=[(0.0, 1.0)] * len(movable),
            constraints=constraints,
            options={"maxiter": self.effort.max_iterations, "ftol": 1e-7},
        )
        climbed = full(np.clip(result.x, 0.0, 1.0))
        return climbed if np.all(np.isfinite(climbed)) else row

    def snapped(self, rows: Array) -> list[Scored]:
        """The rows as feasible configurations, each once, with the values of what they became."""
        space = self.encoding.space
        found: dict[str, dict[str, Value | Shares]] = {}
        for row in rows:
            configuration = self.encoding.decode(row)
            configuration |= {name: value for name, value in self.fixed.items() if name in configuration}
            if not space.violated(configuration):
                found.setdefault(space.key(configuration), configuration)
        return self.scored(list(found.values()))

    def scored(self, configurations: Sequence[dict[str, Value | Shares]]) -> list[Scored]:
        """Configurations with their values, best first."""
        if not configurations:
            return []
        features = self.encoding.encode(configurations)
        values = np.nan_to_num(self.value(features), nan=-np.inf)
        order = np.argsort(-values, kind="stable")
        return [Scored(configurations[i], float(values[i]), features[i]) for i in order]

    def with_neighbours(self, candidates: list[Scored]) -> list[Scored]:
        """The best candidates moved along the grids as long as that is better; all of them, best first."""
        climbed = list(candidates)
        for candidate in candidates[:N_CLIMBED_ON_GRID]:
            best = candidate
            for _ in range(MAX_ROUNDS):
                near = self.snapped_neighbours(best)
                if not near or near[0].value <= best.value:
                    break
                best = near[0]
                climbed.append(best)
        return sorted(climbed, key=lambda s: -s.value)

    def snapped_neighbours(self, around: Scored) -> list[Scored]:
        """Every configuration one grid step or one category away, best first."""
        space = self.encoding.space
        found: dict[str, dict[str, Value | Shares]] = {}
        for parameter in space.active(around.configuration):
            if parameter.name in self.fixed:
                continue
            for value in _neighbours(parameter, around.configuration[parameter.name]):
                changed = self._completed_configuration(around.configuration | {parameter.name: value})
                if space.violated(changed) and changed.keys() != around.configuration.keys():
                    changed = self._moved_inside(changed)
                if not space.violated(changed):
                    found.setdefault(space.key(changed), changed)
        return self.scored(list(found.values()))

    def _moved_inside(self, configuration: dict[str, Value | Shares]) -> dict[str, Value | Shares]:
        """Newly active parameters moved into their constraints; the same configuration where that cannot be."""
        try:
            return moved_inside(self.encoding.space, configuration, fixed=self.fixed, rng=self.rng)
        except EmptyRegion:
            return configuration

    def _completed_configuration(self, configuration: dict[str, Value | Shares]) -> dict[str, Value | Shares]:
        """Inactive parameters left out, newly active ones at their centre or fixed value."""
        result: dict[str, Value | Shares] = {}
        for parameter in self.encoding.space:
            if self.encoding.space.is_active(parameter, result):
                fallback = self.fixed.get(parameter.name, parameter.centre())
                result[parameter.name] = configuration.get(parameter.name, fallback)
        return result

    def last_resort(self, evaluated: Set[str]) -> list[Scored]:
        """Untaken configurations: all of a small finite space, else random ones."""
        space = self.encoding.space
        if space.n_configurations <= MAX_ENUMERATED:
            everything = self._enumerated()
        else:
            try:
                everything = random_configurations(space, N_LAST_DRAWS, rng=self.rng, fixed=self.fixed)
            except EmptyRegion:
                everything = []
        unique = {space.key(c): c for c in everything}
        return self.scored([c for key, c in unique.items() if key not in evaluated])

    def _enumerated(self) -> list[dict[str, Value | Shares]]:
        choices = [[(p.name, v) for v in _all_values(p, self.fixed)] for p in self.encoding.space]
        found = (self._completed_configuration(dict(combination)) for combination in product(*choices))
        return [c for c in found if not self.encoding.space.violated(c)]


def _neighbours(parameter: Any, value: Any) -> list[Value]:
    if isinstance(parameter, Int | Float) and parameter.step is not None:
        steps = [parameter.canonical(value + k * parameter.step) for k in (-2, -1, 1, 2)]
        # the ends of the range give themselves
        return [v for v in dict.fromkeys(steps) if v != value]
    if isinstance(parameter, Ordinal):
        position = parameter.index(value)
        assert position is not None
        return [parameter.choices[i] for i in (position - 1, position + 1) if 0 <= i < len(parameter.choices)]
    if isinstance(parameter, Categorical | Bool):
        return [choice for choice in parameter.choices if choice != value]
    return []


def _all_values(parameter: Any, fixed: Mapping[str, Any]) -> list[Any]:
    if parameter.name in fixed:
        return [fixed[parameter.name]]
    if isinstance(parameter, Fixed):
        return [parameter.value]
    if isinstance(parameter, Categorical | Ordinal | Bool):
        return list(parameter.choices)
    step = parameter.step
    return [parameter.canonical(parameter.low + i * step) for i in range(int(parameter.n_levels))]


def maximise(
    value: ValueOf,
    value_and_gradient: ValueAndGradient,
    encoding: Encoding,
    *,
    rng: np.random.Generator,
    incumbents: Array,
    evaluated: Set[str],
    fixed: Mapping[str, Any] | None = None,
    effort: Effort | None = None,
) -> tuple[Scored, ...]:
    """Configurations by acquisition value, best first, none of them in `evaluated` (digests of space.key).

    `incumbents` (k, d) are rows worth searching near. Empty where the space has nothing left.
    Raises: EmptyRegion where the constraints leave nothing.
    """
    search = _Search(value, value_and_gradient, encoding, rng, fixed or {}, effort or Effort())
    uniform, local = search.raw(incumbents)
    starts = search.starts(uniform, local)
    candidates = search.with_neighbours(search.snapped(np.concatenate([search.climbed(starts), starts])))
    key = encoding.space.key
    fresh = [c for c in candidates if key(c.configuration) not in evaluated]
    return tuple(fresh or search.last_resort(evaluated))
