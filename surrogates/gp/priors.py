"""What a Gaussian process believes before it sees data: kernels, likelihoods and means with their priors.

- `default`: the recipe's kernel and priors (`numerics.exact_gp`), as densities of the logarithms, one lengthscale a
  column group.
- `paper`: Matern-5/2 times a scale, lengthscales ~ Gamma(3, 6), scale ~ Gamma(2, 0.15), noise ~ Gamma(1.1, 0.05):
  BoTorch's defaults until 0.8.5, with which Li, Rudner and Wilson 2023 (arXiv:2305.20028) compared neural networks.
- `saas`: tau ~ HalfCauchy(0.1), tau / l^2 ~ HalfCauchy(1) (Eriksson and Jankowiak 2021, arXiv:2103.00349), scale and
  noise as in `botorch.models.map_saas`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from botorch.models.map_saas import (
    add_saas_prior,
    get_gaussian_likelihood_with_gamma_prior,
    get_mean_module_with_normal_prior,
)
from botorch.models.utils.gpytorch_modules import (
    get_gaussian_likelihood_with_gamma_prior as paper_likelihood,
)
from botorch.models.utils.gpytorch_modules import get_matern_kernel_with_gamma_prior
from botorch.utils.constraints import LogTransformedInterval
from gpytorch.constraints import Positive
from gpytorch.kernels import Kernel, MaternKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood, Likelihood
from gpytorch.likelihoods.noise_models import HomoskedasticNoise
from gpytorch.means import ConstantMean, Mean
from gpytorch.priors import NormalPrior, Prior
from torch import Tensor
from torch.distributions import Distribution, constraints

from surrogates.numerics.exact_gp import (
    LENGTHSCALE_SD,
    LONG_START_NOISE,
    MANY_GROUPS,
    NOISE_CEILING,
    NOISE_FLOOR,
    SHARED_DEGREES,
    SHARED_SD,
    SHARED_SHIFT_SD,
    Groups,
    NoisePrior,
    column_groups,
    lengthscale_prior_mean,
)

SINGLE_NOISE_FLOOR: Final = 1e-4
"""Least noise variance in single precision: below, covariances of close points are not positive definite."""


@dataclass(frozen=True, slots=True)
class Modules:
    """The parts of a SingleTaskGP that a prior chooses."""

    mean: Mean
    kernel: Kernel
    likelihood: Likelihood


class SharedLengthscales(Prior):
    """`numerics.exact_gp.SharedPrior` of log lengthscales (..., d), up to a constant."""

    arg_constraints: Final[dict[str, Any]] = {}
    support: Final = constraints.real_vector

    def __init__(self, d: int) -> None:
        torch.nn.Module.__init__(self)
        Distribution.__init__(self, event_shape=torch.Size([d]), validate_args=False)
        self.mean_log = lengthscale_prior_mean(d)
        self.degrees = SHARED_DEGREES * d
        self.pull = SHARED_SHIFT_SD**2 / (SHARED_SD**2 + d * SHARED_SHIFT_SD**2)

    def log_prob(self, value: Tensor) -> Tensor:
        """(...), of log lengthscales (..., d)."""
        z = value - self.mean_log
        quadratic = (z.square().sum(-1) - self.pull * z.sum(-1).square()) / SHARED_SD**2
        return -0.5 * (self.degrees + z.shape[-1]) * torch.log1p(quadratic / self.degrees)


class GroupedMatern(MaternKernel):
    """Matern-5/2 in which the columns of a group share a lengthscale; `lengthscale` (1, d) has one for every column."""

    def __init__(self, groups: Groups) -> None:
        group_of = column_groups(groups)
        super().__init__(nu=2.5, ard_num_dims=len(group_of), lengthscale_constraint=Positive())
        self.first_columns = [group[0] for group in groups]
        self.register_buffer("group_of", torch.as_tensor(group_of))
        self.register_parameter("raw_lengthscale", torch.nn.Parameter(torch.zeros(1, len(groups))))

    @property
    def lengthscale(self) -> Tensor:
        return self.by_group[..., self.group_of]

    @lengthscale.setter
    def lengthscale(self, value: Tensor | float) -> None:
        of_columns = torch.as_tensor(value).to(self.raw_lengthscale).expand(1, len(self.group_of))
        self.by_group = of_columns[..., self.first_columns]

    @property
    def by_group(self) -> Tensor:
        """(1, g)."""
        return self.raw_lengthscale_constraint.transform(self.raw_lengthscale)

    @by_group.setter
    def by_group(self, value: Tensor) -> None:
        self.initialize(raw_lengthscale=self.raw_lengthscale_constraint.inverse_transform(value))


# functions with names: what holds lambdas cannot be pickled
def _log_lengthscales(kernel: GroupedMatern) -> Tensor:
    return kernel.by_group.log()


def _set_log_lengthscales(kernel: GroupedMatern, value: Tensor) -> None:
    kernel.initialize(by_group=value.exp())


def _log_noise(noise_covar: HomoskedasticNoise) -> Tensor:
    return noise_covar.noise.log()


def _set_log_noise(noise_covar: HomoskedasticNoise, value: Tensor) -> None:
    noise_covar.initialize(noise=value.exp())


def _default(X: Tensor, groups: Groups, noise: NoisePrior) -> Modules:
    n_groups = len(groups)
    is_many = n_groups > MANY_GROUPS
    mean = lengthscale_prior_mean(n_groups)
    kernel = GroupedMatern(groups).to(X)
    # a density of log l, as in the closed form
    kernel.register_prior(
        "lengthscale_prior",
        SharedLengthscales(n_groups) if is_many else NormalPrior(mean, LENGTHSCALE_SD),
        _log_lengthscales,
        _set_log_lengthscales,
    )
    kernel.lengthscale = n_groups**0.5 if is_many else float(np.exp(mean))
    floor = noise_floor(X)
    likelihood = GaussianLikelihood(noise_constraint=LogTransformedInterval(floor, NOISE_CEILING)).to(X)
    likelihood.noise_covar.register_prior(
        "noise_prior",
        NormalPrior(noise.mean, noise.sd),
        _log_noise,
        _set_log_noise,
    )
    likelihood.noise = float(np.exp(max(LONG_START_NOISE if is_many else noise.mean, np.log(2 * floor))))
    return Modules(ConstantMean(), kernel, likelihood)


def _paper(X: Tensor, groups: Groups, noise: NoisePrior) -> Modules:
    # of every column its own, as BoTorch had it
    del groups, noise
    return Modules(ConstantMean(), get_matern_kernel_with_gamma_prior(X.shape[-1]), paper_likelihood())


def _saas(X: Tensor, groups: Groups, noise: NoisePrior) -> Modules:
    del groups, noise
    # placed first: the priors hold tensors that do not follow the model elsewhere
    matern = MaternKernel(nu=2.5, ard_num_dims=X.shape[-1]).to(X)
    add_saas_prior(matern)
    kernel = ScaleKernel(matern, outputscale_constraint=LogTransformedInterval(1e-2, 1e4, initial_value=10))
    return Modules(get_mean_module_with_normal_prior(), kernel, get_gaussian_likelihood_with_gamma_prior())


def noise_floor(X: Tensor) -> float:
    """The least noise variance in X's precision."""
    return NOISE_FLOOR if X.dtype == torch.float64 else SINGLE_NOISE_FLOOR


MODULES: Final[Mapping[str, Callable[[Tensor, Groups, NoisePrior], Modules]]] = {
    "default": _default,
    "paper": _paper,
    "saas": _saas,
}
