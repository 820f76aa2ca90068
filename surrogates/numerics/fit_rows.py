"""Which observations hyperparameters are fitted on where there are too many for all."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

BEST_SHARE: Final = 1 / 3
"""Part of the subset taken from the best observations; the rest is random."""


def fit_rows(y: NDArray[np.float64], limit: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Ascending positions of at most `limit` of the outputs y (n,), larger is better."""
    n = len(y)
    if n <= limit:
        return np.arange(n)
    order = np.argsort(-y, kind="stable")
    n_best = int(limit * BEST_SHARE)
    others = rng.choice(order[n_best:], size=limit - n_best, replace=False)
    return np.sort(np.concatenate([order[:n_best], others]))
