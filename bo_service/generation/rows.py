"""Which observations a model sees when there are many: all, the neighbourhood of the best, or a global sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from bo_service.domain.proposal import Evaluated, StudyView
from surrogates.encoding import Array, Encoding

EXACT: Final = 1000
"""By default, up to so many observations the model sees all of them."""

LOCAL: Final = 500
GLOBAL_EVERY: Final = 5
"""Beyond that, one suggestion in five is made from a global sample, the others from the neighbourhood."""

PRESELECTED: Final = 5000
"""The neighbourhood is looked for among so many observations, or twice its size: half the best, half random."""


def rows_to_use(
    view: StudyView,
    encoding: Encoding,
    *,
    rng: np.random.Generator,
    n_exact: int = EXACT,
    n_local: int = LOCAL,
) -> list[Evaluated]:
    """The observations for this data version, in trial-number order."""
    evaluated = view.evaluated
    if len(evaluated) <= n_exact:
        return list(evaluated)
    merit = merits(view)
    if view.data_version % GLOBAL_EVERY == 0:
        chosen = _best_and_random(merit, n_exact, rng=rng)
    else:
        near = _best_and_random(merit, max(PRESELECTED, 2 * n_local), rng=rng)
        features = encoding.encode([evaluated[i].parameters for i in near])
        incumbent = features[int(np.argmax(merit[near]))]
        distance = ((features - incumbent) ** 2).sum(axis=1)
        chosen = near[np.argsort(distance, kind="stable")[:n_local]]
    return [evaluated[i] for i in np.sort(chosen)]


def merits(view: StudyView) -> Array:
    """One number for each evaluated trial, larger is better: the mean rank over the objectives.

    A missing objective counts as the worst; a broken bound outweighs everything, so feasible means >= 0.
    """
    total = np.zeros(len(view.evaluated))
    for metric in view.spec.objectives:
        values = np.array(_values(view.evaluated, metric.name))
        signed = np.where(np.isnan(values), -np.inf, metric.sign * values)
        total += np.argsort(np.argsort(signed, kind="stable"), kind="stable") / max(len(values) - 1, 1)
    for metric in view.spec.outcome_constraints:
        values = np.array(_values(view.evaluated, metric.name))
        broken = np.isnan(values)
        broken |= values > (np.inf if metric.upper is None else metric.upper)
        broken |= values < (-np.inf if metric.lower is None else metric.lower)
        total -= broken * (len(view.spec.objectives) + 1)
    return total


def _values(evaluated: Sequence[Evaluated], name: str) -> list[float]:
    return [e.measurements[name].value if name in e.measurements else np.nan for e in evaluated]


def _best_and_random(merit: Array, n: int, *, rng: np.random.Generator) -> Array:
    order = np.argsort(-merit, kind="stable")
    n_best = min(n // 2, len(order))
    others = order[n_best:]
    random = rng.choice(others, size=min(n - n_best, len(others)), replace=False)
    return np.sort(np.concatenate([order[:n_best], random]))
