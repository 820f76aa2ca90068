"""The Brusselator, a reaction with diffusion: choose its four constants so that the fields at the end vary least.

u' = d0 lap(u) + a - (b + 1) u + u^2 v and v' = d1 lap(v) + b u - u^2 v on a square of 64 by 64 cells of width 1
without flux through its edge, from u = a and v = b / a plus noise, until t = 20. Objective (Maddox et al. 2021,
"Bayesian optimization with high-dimensional outputs"): the variance of both fields together, where all but the two
outermost rings of cells count a tenth.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from problems.problem import Objective, Problem, Values

Array = NDArray[np.float64]

N_CELLS: Final = 64
END: Final = 20.0
NOISE: Final = 0.1
"""Standard deviation of what is added to v at the start."""

EDGE: Final = 2
INNER_WEIGHT: Final = 0.1

STEP: Final = 1e-3
"""Explicit diffusion is stable up to 1 / (4 d) = 0.05; the reaction is treated so that fields stay positive."""


def solved(a: float, b: float, d0: float, d1: float, *, noise: Array, step: float = STEP) -> Array:
    """Both fields at the end (2, 64, 64), from v = b / a + noise (64, 64).

    Diffusion is explicit. In the reaction what a field loses is taken at the new time (Patankar's way), since
    u^2 step exceeds 2 in bursts, where an explicit step would swing between signs:
    v_new = (v + step (d1 lap v + b u)) / (1 + step u^2) and u_new = (u + step (d0 lap u + a + u^2 v_new)) /
    (1 + step (b + 1)). It is of first order.
    """
    padded = np.empty((2, N_CELLS + 2, N_CELLS + 2))
    fields = padded[:, 1:-1, 1:-1]
    fields[0], fields[1] = a, b / a + noise
    rates = step * np.array([d0, d1])[:, None, None]
    flow, square = np.empty_like(fields), np.empty_like(fields[0])
    u, v = fields
    for _ in range(round(END / step)):
        # no flux: the cell beyond the edge is as the one before it
        padded[:, 0], padded[:, -1] = padded[:, 1], padded[:, -2]
        padded[:, :, 0], padded[:, :, -1] = padded[:, :, 1], padded[:, :, -2]
        np.add(padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], out=flow)
        flow += padded[:, 1:-1, :-2]
        flow += padded[:, 1:-1, 2:]
        flow -= 4 * fields
        flow *= rates
        np.multiply(u, u, out=square)
        square *= step
        v += flow[1]
        v += (step * b) * u
        v /= 1 + square
        u += flow[0]
        u += step * a
        square *= v
        u += square
        u /= 1 + step * (b + 1)
    return fields.copy()


def weighted_variance(fields: Array) -> float:
    """Of both fields (2, 64, 64) together, the inner cells at a tenth."""
    weights = np.ones((N_CELLS, N_CELLS))
    weights[EDGE:-EDGE, EDGE:-EDGE] = INNER_WEIGHT
    return float((fields * weights).var(ddof=1))


def initial_noise(seed: int) -> Array:
    """(64, 64)."""
    return NOISE * np.random.default_rng(seed).standard_normal((N_CELLS, N_CELLS))


def evaluate(parameters: Any, seed: int) -> Values:
    """The objective from the initial noise of this seed."""
    constants = (float(parameters[name]) for name in ("a", "b", "d0", "d1"))
    return {"variance": weighted_variance(solved(*constants, noise=initial_noise(seed)))}


BRUSSELATOR = Problem(
    name="brusselator",
    summary="variance of a reaction-diffusion system, 4 floats, noisy",
    parameters=tuple(
        {"type": "float", "name": name, "low": low, "high": 5.0}
        for name, low in (("a", 0.1), ("b", 0.1), ("d0", 0.01), ("d1", 0.01))
    ),
    objectives=(Objective(name="variance", goal="minimize"),),
    n_initial=5,
    batch=1,
    iterations=30,
    evaluate=evaluate,
    is_noisy=True,
)
