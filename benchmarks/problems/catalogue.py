"""All problems by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from problems.brusselator import BRUSSELATOR
from problems.high_dimensional import NETWORK400, POLY200
from problems.lunar_lander import LUNAR_LANDER
from problems.oil_sorbent import OIL_SORBENT
from problems.pest_control import PEST_CONTROL
from problems.problem import Problem
from problems.synthetic import ACKLEY10, BRANIN, BRANINCURRIN, DTLZ1, DTLZ5, HARTMANN6
from problems.tuning import TASKS

PAPER: Final = (
    BRANIN,
    HARTMANN6,
    ACKLEY10,
    BRANINCURRIN,
    DTLZ1,
    DTLZ5,
    BRUSSELATOR,
    LUNAR_LANDER,
    PEST_CONTROL,
    OIL_SORBENT,
    POLY200,
    NETWORK400,
)
"""Those of Li, Rudner and Wilson 2023, "A study of Bayesian neural network surrogates", that need no download.

Left out: cell coverage and knowledge distillation, whose data are not public, and the interferometer, whose
simulator is not packaged.
"""

_BY_NAME: Final[Mapping[str, Problem]] = {problem.name: problem for problem in (*PAPER, *TASKS)}


def names() -> tuple[str, ...]:
    """Of every problem."""
    return tuple(_BY_NAME)


def find(name: str) -> Problem:
    """The problem of this name. Raises: SystemExit with the names there are."""
    try:
        return _BY_NAME[name]
    except KeyError:
        raise SystemExit(f"no problem named {name!r}; there are: {', '.join(_BY_NAME)}") from None
