"""Weights of models by the likelihood of their mixture at held-out observations.

Yao et al. 2018, "Using stacking to average Bayesian predictive distributions", eq. 4: maximise
sum_i log sum_k w_k p_k(y_i | others) over the simplex, which is concave; by expectation maximisation.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Array = NDArray[np.float64]

MAX_ITERATIONS: Final = 500
TOLERANCE: Final = 1e-6


def stacking_weights(log_densities: Array) -> Array:
    """Weights (k,) for held-out log densities (n, k)."""
    weights: Array = np.full(log_densities.shape[1], 1.0 / log_densities.shape[1])
    for _ in range(MAX_ITERATIONS):
        with np.errstate(divide="ignore"):
            joint = log_densities + np.log(weights)
        share = np.exp(joint - logsumexp(joint, axis=1, keepdims=True)).mean(axis=0)
        if np.abs(share - weights).max() < TOLERANCE:
            break
        weights = share
    result: Array = weights / weights.sum()
    return result
