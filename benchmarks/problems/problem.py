"""What a problem is: parameters and objectives as a study's specification has them, a budget, and the function."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from surrogates.parameters import Bool, Categorical, Float, Int, Ordinal, Parameter
from surrogates.space import SearchSpace

Json = Mapping[str, Any]
Values = dict[str, float]
Evaluate = Callable[[Json, int], Values]
"""(parameters, seed) -> metrics, user units; the seed moves nothing where the problem has no noise."""


class MissingLibrary(RuntimeError):
    """The problem needs a library that is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One number the function returns."""

    name: str
    goal: Literal["minimize", "maximize"]
    reference: float | None = None
    """User units; this coordinate of the hypervolume's reference point, and the study's threshold."""

    @property
    def sign(self) -> float:
        """+1 where larger is better, -1 where smaller is."""
        return 1.0 if self.goal == "maximize" else -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A function to be optimised; n_initial + batch * iterations evaluations are its full budget."""

    name: str
    summary: str
    parameters: tuple[Json, ...]
    """As in the specification of a study."""
    objectives: tuple[Objective, ...]
    n_initial: int
    batch: int
    iterations: int
    evaluate: Evaluate
    best: float | None = None
    """User units; the optimum of one objective, the hypervolume of the true front of several, where known."""
    is_noisy: bool = False
    libraries: tuple[str, ...] = ()
    """Modules it needs beyond torch, botorch and gpytorch."""

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """As in the specification of a study."""
        return [
            {"name": o.name, "goal": o.goal} | ({} if o.reference is None else {"threshold": o.reference})
            for o in self.objectives
        ]

    @property
    def space(self) -> SearchSpace:
        """The search space that a study of these parameters has."""
        return SearchSpace(parameters=tuple(_compiled(p) for p in self.parameters))

    def n_evaluations(self, iterations: int | None = None) -> int:
        """The budget, its iterations capped where a cap is given."""
        capped = self.iterations if iterations is None else min(iterations, self.iterations)
        return self.n_initial + self.batch * capped

    def require_libraries(self) -> None:
        """Raises: MissingLibrary with what to install."""
        absent = [name for name in self.libraries if importlib.util.find_spec(name) is None]
        if absent:
            raise MissingLibrary(
                f"{self.name} needs {', '.join(absent)}: pip install 'bo-service[bench]' brings everything"
            )


def box(bounds: Sequence[tuple[float, float]]) -> tuple[Json, ...]:
    """Floats x0, x1, ... within these bounds."""
    return tuple(
        {"type": "float", "name": f"x{i}", "low": float(low), "high": float(high)}
        for i, (low, high) in enumerate(bounds)
    )


def point(parameters: Json, n: int) -> list[float]:
    """The values of x0, x1, ... in order."""
    return [float(parameters[f"x{i}"]) for i in range(n)]


def _compiled(given: Json) -> Parameter:
    """A parameter of a specification as the search space has it, for machines without the service."""
    kind, name = given["type"], given["name"]
    if kind == "float":
        log = given.get("scale") == "log"
        return Float(name=name, low=given["low"], high=given["high"], log=log, step=given.get("step"))
    if kind == "int":
        log = given.get("scale") == "log"
        return Int(name=name, low=given["low"], high=given["high"], log=log, step=given.get("step", 1))
    if kind == "categorical":
        return Categorical(name=name, choices=tuple(given["choices"]))
    if kind == "ordinal":
        return Ordinal(name=name, choices=tuple(given["levels"]))
    if kind == "bool":
        return Bool(name=name)
    raise ValueError(f"{name}: no problem here has a parameter of type {kind!r}")
