"""Pest control: at each of 25 stages one of four pesticides or none, against a pest that spreads and gets used to them.

Model and constants: Oh, Tomczak, Gavves and Welling 2019, "Combinatorial Bayesian optimization using the graph
Cartesian product". The same random draws serve all stages, so the problem has no noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from problems.problem import Objective, Problem, Values

Array = NDArray[np.float64]

N_STAGES: Final = 25
N_FIELDS: Final = 100
SEED: Final = 1
TOO_MANY: Final = 0.1
"""Share of infested crops above which a field is counted."""

INFESTED: Final = (1.0, 30.0)
SPREADING: Final = (1.0, 17.0 / 3.0)
"""Shape of the beta distributions of the infested share at the start, and of the spread in a stage."""


@dataclass(frozen=True, slots=True)
class Pesticide:
    """Its effect on a field is Beta(1, resistance): the larger the resistance, the less of the pest it kills."""

    price: float
    discount: float
    """Share of the price saved where all stages use it."""
    resistance: float
    tolerance: float
    """What the resistance grows by over 25 uses."""


PESTICIDES: Final = {
    "first": Pesticide(1.0, 0.2, 2 / 7, 1 / 7),
    "second": Pesticide(0.8, 0.3, 3 / 7, 2.5 / 7),
    "third": Pesticide(0.7, 0.3, 3 / 7, 2 / 7),
    "fourth": Pesticide(0.5, 0.0, 5 / 7, 0.5 / 7),
}
NONE: Final = "none"


@cache
def _drawn(alpha: float, beta: float) -> Array:
    """The same (100,) draws whenever these shapes are asked for."""
    return np.random.RandomState(SEED).beta(alpha, beta, size=N_FIELDS)


def loss(choices: list[str]) -> float:
    """Price paid, plus the share of infested fields summed over the stages."""
    infested = _drawn(*INFESTED)
    n_used = dict.fromkeys(PESTICIDES, 0)
    total = 0.0
    for choice in choices:
        total += float(np.mean(infested > TOO_MANY))
        if choice == NONE:
            infested = infested + _drawn(*SPREADING) * (1 - infested)
            continue
        pesticide = PESTICIDES[choice]
        resistance = pesticide.resistance + pesticide.tolerance * n_used[choice] / N_STAGES
        infested = (1 - _drawn(1.0, resistance)) * infested
        n_used[choice] += 1
        total += pesticide.price * (1 - pesticide.discount * choices.count(choice) / N_STAGES)
    return total


def evaluate(parameters: Any, seed: int) -> Values:
    """The loss of a plan."""
    del seed
    return {"loss": loss([parameters[f"stage{i}"] for i in range(N_STAGES)])}


PEST_CONTROL = Problem(
    name="pest",
    summary="pest control, 25 categories of 5",
    parameters=tuple(
        {"type": "categorical", "name": f"stage{i}", "choices": [NONE, *PESTICIDES]} for i in range(N_STAGES)
    ),
    objectives=(Objective(name="loss", goal="minimize"),),
    n_initial=20,
    batch=4,
    iterations=25,
    evaluate=evaluate,
)
