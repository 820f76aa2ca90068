"""Lunar lander: twelve constants of a hand-written controller, judged by its mean reward on 50 terrains.

The task of Eriksson et al. 2019, "Scalable global optimization via local Bayesian optimization", on Gymnasium's
LunarLander-v3, with at most 1,000 steps a terrain.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np

from problems.problem import Objective, Problem, Values, box, point

N_CONSTANTS: Final = 12
N_TERRAINS: Final = 50
MAX_STEPS: Final = 1000

REFERENCE: Final = (0.5, 1.0, 0.4, 0.55, 0.5, 1.0, 0.5, 0.5, 0.0, 0.5, 0.05, 0.05)
"""What Gymnasium's own demonstration flies with."""

NOTHING, LEFT, MAIN, RIGHT = range(4)


@cache
def _environment() -> Any:
    from gymnasium.envs.box2d.lunar_lander import LunarLander

    return LunarLander()


def action(state: Any, w: tuple[float, ...]) -> int:
    """Lean towards the pad, climb where too low for the distance from it; on the ground only brake."""
    x, y, speed_x, speed_y, angle, spin, left_leg, right_leg = (float(s) for s in state)
    if left_leg or right_leg:
        turn, climb = w[8], -speed_y * w[9]
    else:
        wanted = float(np.clip(x * w[0] + speed_x * w[1], -w[2], w[2]))
        turn = (wanted - angle) * w[4] - spin * w[5]
        climb = (w[3] * abs(x) - y) * w[6] - speed_y * w[7]
    if climb > abs(turn) and climb > w[10]:
        return MAIN
    if turn < -w[11]:
        return RIGHT
    return LEFT if turn > w[11] else NOTHING


def reward(w: tuple[float, ...], terrain: int) -> float:
    """The sum of an episode's rewards."""
    environment = _environment()
    state, _ = environment.reset(seed=terrain)
    total = 0.0
    for _ in range(MAX_STEPS):
        state, gained, is_over, _, _ = environment.step(action(state, w))
        total += float(gained)
        if is_over:
            break
    return total


def evaluate(parameters: Any, seed: int) -> Values:
    """The mean over 50 terrains, the same ones every time."""
    del seed
    w = tuple(point(parameters, N_CONSTANTS))
    return {"reward": float(np.mean([reward(w, terrain) for terrain in range(N_TERRAINS)]))}


LUNAR_LANDER = Problem(
    name="lunar",
    summary="lunar lander, 12 floats",
    parameters=box([(0, 2)] * N_CONSTANTS),
    objectives=(Objective(name="reward", goal="maximize"),),
    n_initial=50,
    batch=50,
    iterations=10,
    evaluate=evaluate,
    libraries=("gymnasium", "Box2D"),
)
