"""The density that a fitted surrogate gives an observation: its posterior as it is, widened by its noise."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from botorch.posteriors.ensemble import EnsemblePosterior
from torch import Tensor

from surrogates.mixtures import HiddenPosterior

LEAST_VARIANCE: Final = 1e-6
"""Of every normal, model units: members of an exactly interpolated function would be spikes."""


def log_density(posterior: Any, y: Tensor, noise: Tensor) -> Tensor:
    """Log density (n,) of y (n,) with noise variances (n,) under a posterior of one outcome at points (n, 1, d).

    Members are a mixture of as many normals, what has a hidden number is one of its components, everything else a
    normal with the posterior's mean and variance.
    """
    if isinstance(posterior, EnsemblePosterior):
        means = posterior.values[..., 0, 0].movedim(-1, 0)
        variances = torch.zeros_like(means)
    elif isinstance(posterior, HiddenPosterior):
        means, variances = (each[..., 0, 0] for each in posterior.components())
    else:
        means, variances = posterior.mean[None, :, 0, 0], posterior.variance[None, :, 0, 0]
    variances = (variances.double().clamp_min(0.0) + noise).clamp_min(LEAST_VARIANCE)
    each = -0.5 * ((2 * math.pi * variances).log() + (y - means.double()).square() / variances)
    if isinstance(posterior, EnsemblePosterior):
        weights = posterior.weights.to(each)
    else:
        weights = each.new_full((len(each),), 1 / len(each))
    return torch.logsumexp(each + weights.log()[:, None], dim=0)
