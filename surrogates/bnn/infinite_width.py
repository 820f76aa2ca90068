"""Scales of a finite network from the evidence of its infinitely wide limit.

The evidence of a trained network's own approximation has a second, worse maximum where all data are noise, and from
a handful of observations it is the higher one. The limit of wide networks under the same priors is a Gaussian process
(Lee et al. 2018), its evidence is exact, and what it says of scales and noise holds for networks of finite width well
enough to train them with.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from surrogates.bnn.kernel_gp import data_fit
from surrogates.bnn.kernels import NetworkKernel
from surrogates.bnn.priors import noise_prior
from surrogates.members import centred
from surrogates.numerics.collapsed import LogNormal, NetworkPrior
from surrogates.numerics.networks import group_of_columns
from surrogates.numerics.nngp import nngp_covariance
from surrogates.protocol import BuildRequest

KERNEL_POINTS: Final = 200
"""The evidence is of at most so many observations."""


def scales_of_infinite_width(
    request: BuildRequest, prior: NetworkPrior, generator: torch.Generator
) -> Tensor:
    """(k,), whitened scales under the prior whose evidence for the limit of wide networks is highest."""
    network, priors = prior.network, prior.priors
    kernel = NetworkKernel(
        request.encoding.groups, network.depth, network.activation, has_relevances=prior.has_relevances
    )
    process = data_fit(request, kernel, noise_prior(request))
    process.fit([torch.zeros(process.n_coordinates)], limit=KERNEL_POINTS, generator=generator)
    u, X = process.coordinates, centred(process.X)
    relevances = []
    if prior.has_relevances:
        found = kernel.relevance(u[3:-1])
        X = X * found[group_of_columns(kernel.groups).to(X.device)]
        relevances = [*whitened(priors.relevance, found)]
    _, variance, _ = nngp_covariance(
        X,
        depth=network.depth,
        activation=network.activation,
        weight_variance=kernel.weight(u[0]),
        bias_variance=kernel.bias(u[1]),
    )
    scales = [
        *relevances,
        whitened(priors.weight, kernel.weight(u[0]).sqrt()),
        whitened(priors.bias, kernel.bias(u[1]).sqrt()),
        whitened(priors.output, (kernel.output(u[2]) / variance.mean()).sqrt()),
        u[-1],
    ]
    return torch.stack(scales).cpu()


def whitened(prior: LogNormal, scale: Tensor) -> Tensor:
    """The coordinate of a scale under its prior, within three standard deviations."""
    return ((scale.log() - prior.mean) / prior.sd).clamp(-3.0, 3.0)
