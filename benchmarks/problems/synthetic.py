"""Test functions with known optima, evaluated by BoTorch's own: three of one objective and three of several."""

from __future__ import annotations

from functools import cache
from typing import Any

from problems.problem import Evaluate, Objective, Problem, Values, box, point


@cache
def _function(name: str) -> Any:
    """BoTorch's test function, smaller is better in each of its objectives."""
    from botorch.test_functions import Ackley, Branin, Hartmann
    from botorch.test_functions.multi_objective import DTLZ1, DTLZ5, BraninCurrin

    return {
        "branin": Branin,
        "hartmann6": lambda: Hartmann(dim=6),
        "ackley10": lambda: Ackley(dim=10),
        "branincurrin": BraninCurrin,
        "dtlz1": lambda: DTLZ1(dim=5, num_objectives=2),
        "dtlz5": lambda: DTLZ5(dim=20, num_objectives=3),
    }[name]()


def _evaluation(name: str, d: int) -> Evaluate:
    def evaluate(parameters: Any, seed: int) -> Values:
        import torch

        del seed
        x = torch.tensor([point(parameters, d)], dtype=torch.float64)
        values = _function(name)(x).reshape(-1).tolist()
        return {"value": values[0]} if len(values) == 1 else {f"f{i}": v for i, v in enumerate(values)}

    return evaluate


def _minimised(*references: float) -> tuple[Objective, ...]:
    if not references:
        return (Objective(name="value", goal="minimize"),)
    return tuple(Objective(name=f"f{i}", goal="minimize", reference=r) for i, r in enumerate(references))


BRANIN = Problem(
    name="branin",
    summary="Branin, 2 floats",
    parameters=box([(-5, 10), (0, 15)]),
    objectives=_minimised(),
    n_initial=10,
    batch=10,
    iterations=9,
    evaluate=_evaluation("branin", 2),
    best=0.39788735772973816,
)

HARTMANN6 = Problem(
    name="hartmann6",
    summary="Hartmann, 6 floats",
    parameters=box([(0, 1)] * 6),
    objectives=_minimised(),
    n_initial=10,
    batch=10,
    iterations=19,
    evaluate=_evaluation("hartmann6", 6),
    best=-3.322368011415515,
)

ACKLEY10 = Problem(
    name="ackley10",
    summary="Ackley, 10 floats; its optimum is the centre of the box, so no design may contain that point",
    parameters=box([(-32.768, 32.768)] * 10),
    objectives=_minimised(),
    n_initial=10,
    batch=10,
    iterations=19,
    evaluate=_evaluation("ackley10", 10),
    best=0.0,
)

BRANINCURRIN = Problem(
    name="branincurrin",
    summary="Branin and Currin, 2 floats, 2 objectives",
    parameters=box([(0, 1)] * 2),
    objectives=_minimised(18.0, 6.0),
    n_initial=10,
    batch=5,
    iterations=19,
    evaluate=_evaluation("branincurrin", 2),
    best=59.36011874867746,
)

DTLZ1 = Problem(
    name="dtlz1",
    summary="DTLZ1, 5 floats, 2 objectives",
    parameters=box([(0, 1)] * 5),
    objectives=_minimised(400.0, 400.0),
    n_initial=10,
    batch=10,
    iterations=9,
    evaluate=_evaluation("dtlz1", 5),
    # the front is the segment f0 + f1 = 1/2, and the triangle below it is lost: 1/8, where BoTorch says 1/4
    best=400.0**2 - 0.125,
)

DTLZ5 = Problem(
    name="dtlz5",
    summary="DTLZ5, 20 floats, 3 objectives; the front is a curve",
    parameters=box([(0, 1)] * 20),
    objectives=_minimised(10.0, 10.0, 10.0),
    n_initial=10,
    batch=5,
    iterations=20,
    evaluate=_evaluation("dtlz5", 20),
)
