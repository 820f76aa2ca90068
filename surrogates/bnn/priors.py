"""Priors of the scales of a study's networks, from the options of a fit."""

from __future__ import annotations

from typing import Final

from surrogates.bnn.options import NetworkOptions, NeuralOptions
from surrogates.numerics.collapsed import LogNormal, ScalePriors, default_scale_priors
from surrogates.protocol import BuildRequest

LOW_NOISE: Final = LogNormal(-6.0, 1.0)
STRONG_NOISE: Final = LogNormal(-4.0, 1.0)


def noise_prior(request: BuildRequest) -> LogNormal:
    """Prior of the noise variance that the options ask for."""
    assert isinstance(request.options, NeuralOptions)
    level = request.options.noise
    is_strong = level == "strong" or (level == "auto" and request.train_Yvar is not None)
    return STRONG_NOISE if is_strong else LOW_NOISE


def scale_priors(request: BuildRequest) -> ScalePriors:
    """Priors of all scales."""
    assert isinstance(request.options, NetworkOptions)
    return default_scale_priors(request.options.activation, noise=noise_prior(request))
