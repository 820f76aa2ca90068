"""Which observations hyperparameters are fitted on where there are too many for all."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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


def drawn_rows(y: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """The same of outputs y (n,), by torch's generator and on y's device."""
    seed = int(torch.randint(2**31, (1,), generator=generator))
    rows = fit_rows(y.cpu().numpy(), limit, np.random.default_rng(seed))
    return torch.as_tensor(rows, device=y.device)
