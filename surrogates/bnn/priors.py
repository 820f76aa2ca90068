"""Priors of the scales of a study's networks: standard ones, or those whose functions resemble the study's GP.

The functional prior follows Tran et al. 2022, "All you need is a good functional prior for Bayesian deep learning":
the prior of the weights is chosen so that the functions it draws are distributed like a Gaussian process. For wide
networks the covariance of those functions is known in closed form (`numerics.nngp`), so instead of a Wasserstein
critic the Kullback-Leibler divergence between two normals is minimised. The target is the Gaussian process fitted to
the study's own data: empirical Bayes, which gives every input its relevance without sampling one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from scipy.optimize import fmin_l_bfgs_b
from torch import Tensor
from torch.quasirandom import SobolEngine

from surrogates.bnn.options import NetworkOptions, NeuralOptions
from surrogates.gp.model import FastGP
from surrogates.gp.options import GpOptions
from surrogates.members import centred
from surrogates.numerics.collapsed import (
    OUTPUT_BIAS,
    LogNormal,
    NetworkPrior,
    ScalePriors,
    default_scale_priors,
)
from surrogates.numerics.exact_gp import Array, column_lengthscales, matern52
from surrogates.numerics.networks import Activation, Groups, Network, group_of_columns
from surrogates.numerics.nngp import nngp_covariance
from surrogates.protocol import BuildRequest

LOW_NOISE: Final = LogNormal(-6.0, 1.0)
STRONG_NOISE: Final = LogNormal(-4.0, 1.0)

N_MEASURED: Final = 100
"""Points at which the two priors are compared: up to 70 observed ones, the rest spread over the space."""

N_OBSERVED: Final = 70
NUGGET: Final = 1e-2
"""Variance below which a difference between the priors does not count."""

WEIGHT_BOUNDS: Final = (0.3, 5.0)
BIAS_BOUNDS: Final = (0.05, 5.0)
RELEVANCE_BOUNDS: Final = (0.02, 10.0)
"""Beyond these, wide networks are chaotic or constant, and no sampler moves in them."""

FUNCTIONAL_SD: Final = 0.25
"""How firmly a sampled scale is held at its functional value, in its logarithm."""


@dataclass(frozen=True)
class ScaleValues:
    """One value of every scale."""

    weight: float
    bias: float
    relevance: Tensor
    """(g,), of each column group"""
    output: float


def noise_prior(request: BuildRequest) -> LogNormal:
    """Prior of the noise variance that the options ask for."""
    assert isinstance(request.options, NeuralOptions)
    level = request.options.noise
    is_strong = level == "strong" or (level == "auto" and request.train_Yvar is not None)
    return STRONG_NOISE if is_strong else LOW_NOISE


def standard_priors(request: BuildRequest) -> ScalePriors:
    """Priors that know nothing of the study."""
    assert isinstance(request.options, NetworkOptions)
    return default_scale_priors(request.options.activation, noise=noise_prior(request))


def network_prior(request: BuildRequest, *, has_relevances: bool) -> NetworkPrior:
    """Networks of the shape that the options ask for, under standard priors."""
    options = request.options
    assert isinstance(options, NetworkOptions)
    return NetworkPrior(
        network=Network(request.train_X.shape[-1], options.width, options.depth, options.activation),
        groups=request.encoding.groups,
        priors=standard_priors(request),
        has_relevances=has_relevances,
    )


def functional_priors(request: BuildRequest, values: ScaleValues) -> ScalePriors:
    """Priors held at functional values; relevances are multiplied into the inputs instead."""
    return replace(
        standard_priors(request),
        weight=LogNormal(math.log(values.weight), FUNCTIONAL_SD),
        bias=LogNormal(math.log(values.bias), FUNCTIONAL_SD),
        output=LogNormal(math.log(values.output), FUNCTIONAL_SD),
    )


def study_gp(request: BuildRequest, generator: torch.Generator) -> FastGP:
    """The Gaussian process of this outcome, fitted; milliseconds. Raises: FitDiverged."""
    options = request.options
    assert isinstance(options, NetworkOptions)
    gp = FastGP(
        request.train_X.double(),
        request.train_Y.double(),
        request.train_Yvar,
        groups=request.encoding.groups,
        options=GpOptions(noise=options.noise),
    )
    gp.fit(generator)
    return gp


def relative_relevance(gp: FastGP) -> Tensor:
    """(d,), how much each input matters to the GP: inverse lengthscales, their mean square 1."""
    inverse = 1.0 / torch.as_tensor(column_lengthscales(gp.core.hyperparameters, gp.groups))
    return inverse / inverse.square().mean().sqrt()


def functional_values(request: BuildRequest, gp: FastGP, generator: torch.Generator) -> ScaleValues:
    """The scales whose networks are distributed most nearly like the study's GP."""
    options = request.options
    assert isinstance(options, NetworkOptions)
    X = _measurement_points(request.train_X.double(), generator)
    lengthscales = column_lengthscales(gp.core.hyperparameters, request.encoding.groups)
    return nearest_scales(
        X,
        target_covariance(X, lengthscales),
        request.encoding.groups,
        depth=options.depth,
        activation=options.activation,
    )


def _measurement_points(train_X: Tensor, generator: torch.Generator) -> Tensor:
    chosen = train_X[torch.randperm(len(train_X), generator=generator)[:N_OBSERVED]]
    seed = int(torch.randint(2**31, (1,), generator=generator))
    spread = SobolEngine(train_X.shape[-1], scramble=True, seed=seed).draw(
        N_MEASURED - len(chosen), dtype=torch.float64
    )
    return torch.cat([chosen, spread])


def target_covariance(X: Tensor, lengthscales: Array) -> Tensor:
    """Covariance (n, n) of the GP's functions at X (n, d), its constant mean's variance that of the networks."""
    scaled = X / torch.as_tensor(lengthscales)
    k, _ = matern52(torch.cdist(scaled, scaled, compute_mode="donot_use_mm_for_euclid_dist").numpy())
    return torch.as_tensor(k) + OUTPUT_BIAS**2


def network_covariance(
    X: Tensor, log_scales: Tensor, groups: Groups, *, depth: int, activation: Activation
) -> Tensor:
    """Covariance (n, n) of wide networks' functions at X (n, d) in [0, 1].

    log_scales (3 + g,): weight, bias, output, relevances.
    """
    scales = log_scales.exp()
    k, _, _ = nngp_covariance(
        centred(X) * scales[3:][group_of_columns(groups)],
        depth=depth,
        activation=activation,
        weight_variance=scales[0].square(),
        bias_variance=scales[1].square(),
    )
    return scales[2].square() * k + OUTPUT_BIAS**2


def nearest_scales(
    X: Tensor, target: Tensor, groups: Groups, *, depth: int, activation: Activation
) -> ScaleValues:
    """The scales that minimise KL(N(0, target) | N(0, K(scales))) at X (n, d), both with a nugget.

    The output scale is not free: it gives the functions the target's mean variance, because along a constant
    function, which neither the data nor the divergence sees much of, any other would do as well.
    """
    nugget = NUGGET * torch.eye(len(X), dtype=X.dtype)
    wanted = target + nugget

    def balanced(log_scales: Tensor) -> tuple[Tensor, Tensor]:
        free = torch.cat([log_scales[:2], log_scales.new_zeros(1), log_scales[2:]])
        k = network_covariance(X, free, groups, depth=depth, activation=activation) - OUTPUT_BIAS**2
        output = ((target.diagonal().mean() - OUTPUT_BIAS**2) / k.diagonal().mean()).sqrt()
        return output.square() * k + OUTPUT_BIAS**2, output

    def divergence(log_scales: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(balanced(log_scales)[0] + nugget)
        return 0.5 * torch.cholesky_solve(wanted, factor).trace() + factor.diagonal().log().sum()

    standard = default_scale_priors(activation, noise=LOW_NOISE)
    start = np.r_[standard.weight.mean, standard.bias.mean, np.zeros(len(groups))]
    bounds = [WEIGHT_BOUNDS, BIAS_BOUNDS] + [RELEVANCE_BOUNDS] * len(groups)
    best, _, _ = fmin_l_bfgs_b(
        _numpy(divergence), start, bounds=[tuple(np.log(b)) for b in bounds], factr=1e9, maxiter=200
    )
    scales = torch.as_tensor(np.exp(best))
    _, output = balanced(torch.as_tensor(best))
    return ScaleValues(float(scales[0]), float(scales[1]), scales[2:], float(output))


def _numpy(function: Callable[[Tensor], Tensor]) -> Callable[[Array], tuple[float, Array]]:
    def value_and_gradient(x: Array) -> tuple[float, Array]:
        point = torch.as_tensor(x).clone().requires_grad_()
        value = function(point)
        (gradient,) = torch.autograd.grad(value, point)
        return float(value.detach()), gradient.numpy().astype(np.float64)

    return value_and_gradient
