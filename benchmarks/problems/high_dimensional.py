"""Functions of hundreds of floats: a sum of products in 200 dimensions, and a random network in 400."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from problems.problem import Objective, Problem, Values, box, point

Array = NDArray[np.float64]

N_POLY: Final = 200
N_FACTORS: Final = 4
N_INPUTS: Final = 400
WIDTH: Final = 256
SEED: Final = 2305
"""Of the coefficients and the weights: the same functions for everybody, in every run."""


@cache
def centres() -> Array:
    """(200,), c ~ N(0, 1)."""
    return np.random.default_rng((SEED, N_POLY)).standard_normal(N_POLY)


def poly200(parameters: Any, seed: int) -> Values:
    """Sum over 50 groups of the product of 4 factors x - c; group j has columns j, j + 50, j + 100, j + 150."""
    del seed
    factors = np.array(point(parameters, N_POLY)) - centres()
    return {"value": float(factors.reshape(N_FACTORS, -1).prod(axis=0).sum())}


def best_poly200() -> float:
    """The maximum: a product of linear factors is largest at a corner, and no two groups share a column."""
    corners = np.stack(np.meshgrid(*[[0.0, 1.0]] * N_FACTORS, indexing="ij"), axis=-1).reshape(-1, N_FACTORS)
    groups = centres().reshape(N_FACTORS, -1).T
    products = (corners[:, None, :] - groups[None, :, :]).prod(axis=-1)
    return float(products.max(axis=0).sum())


@cache
def weights() -> tuple[tuple[Array, Array], ...]:
    """Weights (out, in) and biases (out,) of three layers, all N(0, 1)."""
    rng = np.random.default_rng((SEED, N_INPUTS))
    sizes = [N_INPUTS, WIDTH, WIDTH, 1]
    return tuple(
        (rng.standard_normal((n_out, n_in)), rng.standard_normal(n_out)) for n_in, n_out in pairwise(sizes)
    )


def network400(parameters: Any, seed: int) -> Values:
    """A tanh network of two hidden layers of 256."""
    del seed
    hidden = np.array(point(parameters, N_INPUTS))
    *inner, (last, bias) = weights()
    for matrix, offset in inner:
        hidden = np.tanh(matrix @ hidden + offset)
    return {"value": float((last @ hidden + bias)[0])}


POLY200 = Problem(
    name="poly200",
    summary="polynomial, 200 floats",
    parameters=box([(0, 1)] * N_POLY),
    objectives=(Objective(name="value", goal="maximize"),),
    n_initial=100,
    batch=10,
    iterations=25,
    evaluate=poly200,
    best=best_poly200(),
)

NETWORK400 = Problem(
    name="network400",
    summary="draw of a tanh network, 400 floats",
    parameters=box([(0, 1)] * N_INPUTS),
    objectives=(Objective(name="value", goal="maximize"),),
    n_initial=100,
    batch=10,
    iterations=50,
    evaluate=network400,
)
