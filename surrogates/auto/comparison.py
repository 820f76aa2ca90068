"""How well surrogates predict a study's own observations: each fold from the others, under a time budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import torch
from gpytorch.utils.errors import NanError, NotPSDError
from scipy.stats import t as student_t
from torch import Tensor

from surrogates.auto.density import log_density
from surrogates.errors import SurrogateError
from surrogates.numerics.stacking import Array, stacking_weights
from surrogates.protocol import BuildRequest, CostClass
from surrogates.registry import plugin as find_plugin

MIN_TO_COMPARE: Final = 20
"""With fewer observations folds say nothing, and the first candidate is taken unseen."""

FAILURES: Final = (SurrogateError, NanError, NotPSDError, np.linalg.LinAlgError, RuntimeError, ValueError)
"""What a candidate's fit may raise without anybody's fault; torch reports numerical trouble by the last two."""

FALSE_ALARMS: Final = 0.05
"""How often the first candidate is left at most, where none of the others predicts better."""

COSTS: Final[tuple[CostClass, ...]] = ("free", "cheap", "moderate", "expensive")

MIN_WEIGHT: Final = 0.05
"""Smaller weights are left out of an average."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Held-out log densities, and what was not compared."""

    names: tuple[str, ...]
    """The candidates compared, the first always among them."""
    log_densities: Array
    """(n, k)"""
    left_out: Mapping[str, str]
    """Candidate -> why."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    n_folds: int = 5

    def differences(self) -> dict[str, tuple[float, float]]:
        """How much better than the first each candidate is, a mean log density, and its standard error.

        Folds are predicted from nearly the same data, so their errors go together: corrected by Nadeau and Bengio
        2003, "Inference for the generalization error", eq. 9, for k folds instead of random ones.
        """
        found = {}
        n = len(self.log_densities) / (1 + self.n_folds / (self.n_folds - 1))
        for k, name in enumerate(self.names[1:], start=1):
            difference = self.log_densities[:, k] - self.log_densities[:, 0]
            found[name] = float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(n))
        return found

    @property
    def sure(self) -> float:
        """How many standard errors of the difference a candidate must be better by than the first.

        One-sided paired t-test, its level shared among the rivals (Bonferroni).
        """
        n_rivals = max(len(self.names) - 1, 1)
        return float(student_t.isf(FALSE_ALARMS / n_rivals, len(self.log_densities) - 1))

    def chosen(self) -> str:
        """The best candidate that is better than the first beyond doubt, else the first, and of few points always."""
        if len(self.log_densities) < MIN_TO_COMPARE:
            return self.names[0]
        sure = {name: mean for name, (mean, se) in self.differences().items() if mean > self.sure * se}
        return max(sure, key=lambda name: sure[name], default=self.names[0])

    def weights(self) -> dict[str, float]:
        """Stacking weights, small ones left out."""
        found = stacking_weights(self.log_densities)
        kept = {name: float(w) for name, w in zip(self.names, found, strict=True) if w >= MIN_WEIGHT}
        total = sum(kept.values())
        return {name: w / total for name, w in kept.items()}


def compare(
    request: BuildRequest,
    candidates: Sequence[str],
    options: Mapping[str, Any],
    *,
    n_folds: int,
    max_compared: int,
    budget_seconds: float,
    generator: torch.Generator,
    clock: Callable[[], float] = time.monotonic,
) -> Comparison:
    """Predict every fold from the others with every candidate; `options` are validated ones by name.

    The first candidate is compared whatever it costs; each other one until its next fold would pass the budget, the
    cheap ones before the expensive ones, whose first fold may use it up.
    Raises what the first candidate's fit raises.
    """
    n = len(request.train_X)
    order = torch.randperm(n, generator=generator)[:max_compared]
    folds = [order[i::n_folds] for i in range(min(n_folds, len(order)))]
    seed = int(torch.randint(2**31, (1,), generator=generator))
    started = clock()
    columns: dict[str, Array] = {}
    left_out: dict[str, str] = {}
    seconds: dict[str, float] = {}
    cheap_first = sorted(candidates[1:], key=lambda name: COSTS.index(find_plugin(name).abilities.cost_class))
    for name in (candidates[0], *cheap_first):
        at = clock()
        left = math.inf if name == candidates[0] else budget_seconds - (at - started)
        try:
            column = _held_out(
                replace(request, options=options[name], warm=None),
                name,
                folds,
                seed=seed,
                left=left,
                clock=clock,
            )
        except FAILURES as error:
            if name == candidates[0]:
                raise
            left_out[name] = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        seconds[name] = clock() - at
        if column is None:
            left_out[name] = f"the comparison would take longer than {budget_seconds:g} s"
        else:
            columns[name] = column
    return Comparison(
        tuple(columns), np.stack(list(columns.values()), axis=1), left_out, seconds, n_folds=len(folds)
    )


def _held_out(
    request: BuildRequest,
    name: str,
    folds: Sequence[Tensor],
    *,
    seed: int,
    left: float,
    clock: Callable[[], float],
) -> Array | None:
    """Log densities of the observations, fold after fold; None where all would not be done in `left` seconds."""
    found: list[Array] = []
    started = clock()
    for i, fold in enumerate(folds):
        if left <= 0 or (i and (clock() - started) / i * len(folds) > left):
            return None
        rest = torch.cat([other for j, other in enumerate(folds) if j != i])
        model: Any = find_plugin(name).build(_part(request, rest))
        model.fit(torch.Generator().manual_seed(seed + i))
        held = _part(request, fold)
        y = held.train_Y[:, 0].double()
        noise = model.noise_variance()[0].to(y).expand_as(y)
        if held.train_Yvar is not None:
            noise = noise + held.train_Yvar[:, 0]
        with torch.no_grad():
            found.append(log_density(model.posterior(held.train_X[:, None, :]), y, noise).numpy())
    return np.concatenate(found)


def _part(request: BuildRequest, rows: Tensor) -> BuildRequest:
    known = request.train_Yvar
    return replace(
        request,
        train_X=request.train_X[rows],
        train_Y=request.train_Y[rows],
        train_Yvar=None if known is None else known[rows],
    )
