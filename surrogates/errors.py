"""SurrogateError
+- NotEnoughData         caller uses the initial design
+- FitDiverged           caller climbs the ladder: jitter, restart from the prior, simpler model, space-filling
|  `- FitRejected        the fit fails its own diagnostics: caller goes straight to the simpler model
+- UnknownSurrogate      the user named a plug-in that is not installed
+- InvalidSpace          the search space contradicts itself; carries every problem found
+- InvalidConfiguration  a configuration lies outside its search space; carries every problem found
`- EmptyRegion           no configuration meets the linear constraints
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with an input: where (dotted path), why, and what to do instead."""

    path: str
    reason: str
    hint: str = ""

    def __str__(self) -> str:
        tail = f" ({self.hint})" if self.hint else ""
        return f"{self.path}: {self.reason}{tail}"

    def under(self, prefix: str) -> Problem:
        """The same problem, seen from one level higher."""
        return Problem(f"{prefix}.{self.path}" if self.path else prefix, self.reason, self.hint)


class SurrogateError(Exception):
    """Anything this package raises on purpose."""


class NotEnoughData(SurrogateError):
    """The model needs more observations than there are."""


class FitDiverged(SurrogateError):
    """The fit did not reach finite, usable hyperparameters."""


class FitRejected(FitDiverged):
    """The fit ended but does not pass its own diagnostics; trying again would not help."""


class UnknownSurrogate(SurrogateError):
    """No installed plug-in has this name."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(f"no surrogate named {name!r}; installed: {', '.join(known) or 'none'}")


class _WithProblems(SurrogateError):
    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))


class InvalidSpace(_WithProblems):
    """The search space contradicts itself."""


class InvalidConfiguration(_WithProblems):
    """A configuration lies outside its search space."""


class EmptyRegion(_WithProblems):
    """No configuration meets every linear constraint."""
