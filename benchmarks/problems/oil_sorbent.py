"""An electrospun oil sorbent: water contact angle, oil absorption and strength, as polynomials fitted to experiments.

Wang, Cai, Liu, Yang and Ding 2020, "Harnessing a novel machine-learning-assisted evolutionary algorithm to co-optimize
three characteristics of an electrospun oil sorbent", ACS Applied Materials & Interfaces. Inputs V1 to V7 enter as
shares of their largest level. Two of them vary freely and five in steps, as in the mixed version of Daulton et al.
2022, "Bayesian optimization over discrete and mixed spaces via probabilistic reparameterization". The largest
hypervolume is not known: a grid of 25 values for each of the two reaches 1,469,616, above the 1,279,775 given there.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from problems.problem import Objective, Problem, Values

LEVELS: Final = {
    "v2": [0.7, 1.0, 1.4, 1.7, 2.0],
    "v3": [12.0, 15.0, 18.0, 21.0, 24.0],
    "v4": [0.12, 0.135, 0.15, 0.165, 0.18],
    "v6": [16.0, 20.0, 26.0, 28.0],
    "v7": [0.41, 0.6, 0.84, 1.32],
}
N_INPUTS: Final = 7

# A table an objective. Row 0: the constant and the coefficients of V1 to V7; row i: those of Vi Vi to Vi V7.
ANGLE: Final = (
    (-197.0928, -78.3309, 98.6355, 300.0701, 89.8360, 208.2343, 332.9341, 135.6621),
    (-16.7536, -11.0715, 201.8934, 17.1270, 2.5198, -109.3922, 30.1607),
    (-45.6507, -46.1790, 19.2888, -102.9493, -19.1245, 53.6297),
    (-91.4134, -73.0649, -37.7181, -219.1268, -55.3704),
    (0.0, 3.8778, -6.9252, -105.1650),
    (-76.8701, -34.3181, -36.3892),
    (0.0, -82.3222),
    (0.0,),
)
ABSORPTION: Final = (
    (-212.8531, 245.7998, -127.3395, 305.8461, 638.1605, 301.2118, -451.3796, -115.5485),
    (0.0, 42.8351, 262.3775, -103.5274, -196.1568, -394.7975, -176.3341),
    (0.0, 74.8291, 4.1557, -133.8683, 65.8711, -42.6911),
    (0.0, -323.9363, -107.3983, -323.2353, 46.9172),
    (-286.0182, -144.4199, 272.3729, 49.0799),
    (0.0, 318.4706, -236.2498),
    (393.5992, 252.4848),
    (0.0,),
)
STRENGTH: Final = (
    (7.7696, 15.4344, -10.6190, -17.9367, 17.1385, 2.5026, -24.3010, 10.6058),
    (-18.7356, -1.2041, -37.2207, -3.2265, 7.3121, 52.3994, 9.7485),
    (12.1928, -15.9371, -1.1706, -2.6297, 7.0225, -1.4938),
    (0.0, 30.2786, 14.5061, 48.5021, -11.4857),
    (-17.5460, -3.1381, -14.9747, 4.5204),
    (5.4997, -17.6907, -19.2489),
    (-26.2718, -9.8219),
    (0.0,),
)


def _quadratic(rows: tuple[tuple[float, ...], ...]) -> NDArray[np.float64]:
    """Upper triangular (8, 8): the polynomial is w A w for w = (1, V1, ..., V7)."""
    matrix = np.zeros((N_INPUTS + 1, N_INPUTS + 1))
    for i, row in enumerate(rows):
        matrix[i, i:] = row
    return matrix


POLYNOMIALS: Final = {
    "angle": _quadratic(ANGLE),
    "absorption": _quadratic(ABSORPTION),
    "strength": _quadratic(STRENGTH),
}


def evaluate(parameters: Any, seed: int) -> Values:
    """The three polynomials, larger is better."""
    del seed
    shares = [
        float(parameters[name]) / max(LEVELS.get(name, [1.0]))
        for name in (f"v{i}" for i in range(1, N_INPUTS + 1))
    ]
    w = np.array([1.0, *shares])
    return {name: float(w @ matrix @ w) for name, matrix in POLYNOMIALS.items()}


def _parameter(name: str) -> dict[str, Any]:
    if name in LEVELS:
        return {"type": "ordinal", "name": name, "levels": LEVELS[name]}
    return {"type": "float", "name": name, "low": 0.0, "high": 1.0}


OIL_SORBENT = Problem(
    name="oil",
    summary="oil sorbent, 2 floats and 5 ordinals, 3 objectives",
    parameters=tuple(_parameter(f"v{i}") for i in range(1, N_INPUTS + 1)),
    objectives=(
        Objective(name="angle", goal="maximize", reference=125.3865),
        Objective(name="absorption", goal="maximize", reference=57.8292),
        Objective(name="strength", goal="maximize", reference=-43.2665),
    ),
    n_initial=100,
    batch=10,
    iterations=10,
    evaluate=evaluate,
)
