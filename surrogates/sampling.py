"""Space-filling configurations: one scrambled Sobol sequence a space and seed, feasible point by point (no torch)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.stats import qmc

from surrogates.encoding import Array, value_at
from surrogates.errors import EmptyRegion, Problem
from surrogates.parameters import Fixed, Float, Int, Mixture, Parameter, Shares, Value
from surrogates.polytope import Polytope, linear_polytope
from surrogates.space import SearchSpace

N_REDRAWS: Final = 24
"""Independent draws tried for a point that breaks a linear constraint, before walking the polytope."""

N_WALKS: Final = 40
"""Walks tried where snapping to a grid breaks a constraint again."""

Sample = dict[str, Value | Shares]


@dataclass(frozen=True, slots=True)
class _Sampler:
    """Maps points of the unit cube to configurations of one space, some values held fixed."""

    space: SearchSpace
    fixed: Mapping[str, Any]

    @property
    def n_dimensions(self) -> int:
        return max(sum(_n_uniforms(p) for p in self.space), 1)

    def at(self, uniforms: Array) -> Sample:
        """The configuration at a point (n_dimensions,) of the cube; linear constraints are not looked at."""
        configuration: Sample = {}
        start = 0
        for parameter in self.space:
            width = _n_uniforms(parameter)
            if self.space.is_active(parameter, configuration):
                given = self.fixed.get(parameter.name)
                configuration[parameter.name] = (
                    _value_at(parameter, uniforms[start : start + width]) if given is None else given
                )
            start += width
        return configuration


def space_filling(
    space: SearchSpace, n: int, *, seed: int, start: int = 0, fixed: Mapping[str, Any] | None = None
) -> list[Sample]:
    """Points `start` to `start + n` of the sequence of (space, seed, fixed); each depends on its index alone.

    A point that breaks a linear constraint is drawn again, then taken from a random walk in the polytope.
    Raises: EmptyRegion where nothing feasible is found.
    """
    sampler = _Sampler(space, fixed or {})
    return [
        _feasible(sampler, uniforms, rng=np.random.default_rng((seed, 1, start + i)))
        for i, uniforms in enumerate(_sobol(sampler.n_dimensions, n, seed=seed, start=start))
    ]


def random_configurations(
    space: SearchSpace, n: int, *, rng: np.random.Generator, fixed: Mapping[str, Any] | None = None
) -> list[Sample]:
    """Independent feasible configurations. Raises: EmptyRegion."""
    sampler = _Sampler(space, fixed or {})
    return [_feasible(sampler, rng.random(sampler.n_dimensions), rng=rng) for _ in range(n)]


def centre(space: SearchSpace, fixed: Mapping[str, Any] | None = None) -> Sample:
    """The middle of every range, moved into the linear constraints where they cut it off. Raises: EmptyRegion."""
    configuration: Sample = {}
    for parameter in space:
        if space.is_active(parameter, configuration):
            given = (fixed or {}).get(parameter.name)
            configuration[parameter.name] = parameter.centre() if given is None else given
    if not space.violated(configuration):
        return configuration
    polytope = linear_polytope(space, configuration, fixed or {})
    moved = polytope.applied(polytope.centre, configuration)
    if not space.violated(moved):
        return moved
    return space_filling(space, 1, seed=0, fixed=fixed)[0]


def feasibility_problem(space: SearchSpace) -> str | None:
    """Why no configuration meets the linear constraints, or None."""
    try:
        space_filling(space, 1, seed=0)
    except EmptyRegion as error:
        return error.problems[0].reason
    return None


def _sobol(n_dimensions: int, n: int, *, seed: int, start: int) -> Array:
    if n_dimensions > qmc.Sobol.MAXDIM:
        return np.stack([np.random.default_rng((seed, 0, start + i)).random(n_dimensions) for i in range(n)])
    engine = qmc.Sobol(n_dimensions, scramble=True, seed=seed)
    if start:
        engine.fast_forward(start)
    with warnings.catch_warnings():
        # a prefix of any length is wanted here, not a balanced set
        warnings.filterwarnings("ignore", message=".*balance properties.*")
        return np.asarray(engine.random(n))


def _feasible(sampler: _Sampler, uniforms: Array, *, rng: np.random.Generator) -> Sample:
    """The configuration at these uniforms, its linear parameters moved into the constraints where they break them.

    Which branches are active is kept as drawn, however thin the polytope behind them; another draw decides only
    where a branch has none. Raises: EmptyRegion.
    """
    problem: EmptyRegion | None = None
    for _ in range(N_REDRAWS):
        configuration = sampler.at(uniforms)
        if not sampler.space.violated(configuration):
            return configuration
        try:
            return moved_inside(sampler.space, configuration, fixed=sampler.fixed, rng=rng)
        except EmptyRegion as error:
            problem = problem or error
        uniforms = rng.random(len(uniforms))
    assert problem is not None
    raise problem


def moved_inside(
    space: SearchSpace, configuration: Sample, *, fixed: Mapping[str, Any], rng: np.random.Generator
) -> Sample:
    """The configuration with other values of its linear parameters, inside the constraints. Raises: EmptyRegion."""
    polytope = linear_polytope(space, configuration, fixed)
    for _ in range(N_WALKS):
        walked = polytope.applied(polytope.walk(rng), configuration)
        if not space.violated(walked):
            return walked
    found = polytope.on_grid(rng)
    if found is not None:
        placed = polytope.applied(found, configuration)
        if not space.violated(placed):
            return placed
    raise EmptyRegion([_nothing_on_the_grid(polytope)])


def _nothing_on_the_grid(polytope: Polytope) -> Problem:
    names = ", ".join(polytope.parameters)
    return Problem("constraints", f"no values of {names} on their grids were found that meet the constraints")


def _n_uniforms(parameter: Parameter) -> int:
    if isinstance(parameter, Fixed):
        return 0
    return len(parameter.components) - 1 if isinstance(parameter, Mixture) else 1


def _value_at(parameter: Parameter, uniforms: Array) -> Value | Shares:
    if isinstance(parameter, Float):
        return parameter.canonical(value_at(parameter, float(uniforms[0])))
    if isinstance(parameter, Int):
        return _int_at(parameter, float(uniforms[0]))
    if isinstance(parameter, Mixture):
        return parameter.canonical(
            {
                c.name: float(s)
                for c, s in zip(parameter.components, shares_at(parameter, uniforms), strict=True)
            }
        )
    if isinstance(parameter, Fixed):
        return parameter.value
    return parameter.choices[min(int(uniforms[0] * len(parameter.choices)), len(parameter.choices) - 1)]


def _int_at(parameter: Int, uniform: float) -> int:
    """Every grid value as likely as its neighbours; on a log scale, as its place among the decades."""
    if parameter.log:
        return parameter.canonical(value_at(parameter, uniform))
    index = min(int(uniform * parameter.n_levels), int(parameter.n_levels) - 1)
    return parameter.low + index * parameter.step


def shares_at(mixture: Mixture, uniforms: Array) -> Array:
    """K - 1 uniforms to k shares: uniform on the simplex above the lower bounds, upper bounds kept share by share.

    The i-th share's part of what is left is Beta(1, k - 1 - i), by its inverse distribution function, cut to
    the interval from which the remaining components can still reach a sum of 1.
    """
    low = np.array([c.low for c in mixture.components])
    high = np.array([c.high for c in mixture.components])
    shares = np.empty(len(low))
    left = 1.0
    for i in range(len(low) - 1):
        smallest = max(low[i], left - high[i + 1 :].sum())
        largest = max(min(high[i], left - low[i + 1 :].sum()), smallest)
        free = left - low[i:].sum()
        n_after = len(low) - 1 - i
        if free <= 0:
            shares[i] = smallest
        else:
            ends = [1.0 - max(1.0 - (end - low[i]) / free, 0.0) ** n_after for end in (smallest, largest)]
            place = ends[0] + uniforms[i] * (ends[1] - ends[0])
            share = low[i] + free * (1.0 - (1.0 - place) ** (1.0 / n_after))
            shares[i] = min(max(share, smallest), largest)
        left -= shares[i]
    shares[-1] = left
    return shares
