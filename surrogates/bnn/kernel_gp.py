"""A whitened kernel in BoTorch's Gaussian process: every acquisition made for Gaussian processes takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models import SingleTaskGP
from botorch.models.model import Model
from botorch.posteriors.gpytorch import GPyTorchPosterior
from botorch.posteriors.posterior import Posterior
from gpytorch.constraints import GreaterThan
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood
from gpytorch.means import ConstantMean
from linear_operator import to_linear_operator
from torch import Tensor

from surrogates.bnn.kernel_fit import NOISE_FLOOR, KernelFit
from surrogates.bnn.kernels import WhitenedKernel
from surrogates.compute import device_of
from surrogates.members import checked
from surrogates.numerics.collapsed import LogNormal
from surrogates.protocol import BuildRequest


class GpytorchKernel(Kernel):
    """A whitened kernel as GPyTorch sees one."""

    has_lengthscale = False

    def __init__(self, kernel: WhitenedKernel, device: torch.device) -> None:
        super().__init__()
        self.kernel = kernel
        start = torch.zeros(kernel.n_coordinates, dtype=torch.float64, device=device)
        self.register_parameter("coordinates", torch.nn.Parameter(start))

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:  # noqa: FBT001, FBT002
        """(..., n, m), or (..., n) of pairs of rows."""
        del params
        if not diag:
            return self.kernel(self.coordinates, x1, x2)
        if torch.equal(x1, x2):
            return self.kernel.variance(self.coordinates).expand(x1.shape[:-1])
        return self.kernel(self.coordinates, x1[..., None, :], x2[..., None, :])[..., 0, 0]


def data_fit(request: BuildRequest, kernel: WhitenedKernel, noise: LogNormal) -> KernelFit:
    """The data of a request under a kernel, in float64 where the model computes."""
    device = device_of(request.options, request.device)
    X, y = request.train_X.to(device, torch.float64), request.train_Y[:, 0].to(device, torch.float64)
    known = torch.zeros_like(y) if request.train_Yvar is None else request.train_Yvar[:, 0].to(y)
    return KernelFit(X, y, known, kernel=kernel, noise=noise)


def gaussian_posterior(
    mean: Tensor, covariance: Tensor, X: Tensor, transform: PosteriorTransform | None
) -> Posterior:
    """Mean (..., q) and covariance (..., q, q) as a joint posterior of X's device and precision."""
    distribution = MultivariateNormal(mean.to(X), to_linear_operator(covariance.to(X)))
    posterior = GPyTorchPosterior(distribution=distribution)
    return posterior if transform is None else transform(posterior, X=X)


class KernelGP(SingleTaskGP):
    """One outcome; features in [0, 1], hyperparameters by `KernelFit`."""

    def __init__(
        self, request: BuildRequest, kernel: WhitenedKernel, noise: LogNormal, *, limit: int
    ) -> None:
        checked(request)
        process = data_fit(request, kernel, noise)
        has_variances = request.train_Yvar is not None
        likelihood = (
            FixedNoiseGaussianLikelihood(noise=process.variances.clamp_min(NOISE_FLOOR))
            if has_variances
            else GaussianLikelihood(noise_constraint=GreaterThan(NOISE_FLOOR / 10))
        )
        super().__init__(
            train_X=process.X,
            train_Y=process.y[:, None],
            train_Yvar=process.variances[:, None] if has_variances else None,
            likelihood=likelihood,
            covar_module=GpytorchKernel(kernel, process.X.device),
            mean_module=ConstantMean(),
            outcome_transform=None,
            input_transform=None,
        )
        self.request, self.process, self.limit = request, process, limit
        self.rungs: list[str] = []

    def fit(self, generator: torch.Generator) -> None:
        """Maximum a posteriori hyperparameters, on a subset of many data. Raises: FitDiverged."""
        warm = self.process.warm_start(self.request.warm)
        start = torch.zeros(self.process.n_coordinates) if warm is None else warm
        self.process.fit([start], limit=self.limit, generator=generator)
        self._adopted()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take hyperparameters over and condition on this model's data."""
        self.process.adopt(state["coordinates"])
        self._adopted()

    def _adopted(self) -> None:
        """Write what was found into GPyTorch's modules."""
        process = self.process
        noise = process.noise(process.coordinates)
        # only from training mode does evaluation forget what was computed before
        self.train()
        with torch.no_grad():
            self.covar_module.coordinates.copy_(process.coordinates[:-1])
        self.mean_module.constant = process.given.constant
        is_fixed = isinstance(self.likelihood, FixedNoiseGaussianLikelihood)
        self.likelihood.noise = process.variances + noise if is_fixed else noise
        self.eval()

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,  # noqa: FBT001, FBT002  BoTorch's signature
        posterior_transform: PosteriorTransform | None = None,
    ) -> Posterior:
        """Joint posterior at X (..., q, d), on X's device.

        GPyTorch answers where noise is asked for, and for fantasies, whose data are not the fit's.
        """
        is_plain = observation_noise is False and self.train_inputs[0].ndim == 2
        if is_plain and len(self.train_inputs[0]) == len(self.process.X):
            mean, covariance = self.process.moments(X.to(self.process.X))
            return gaussian_posterior(mean, covariance, X, posterior_transform)
        return super().posterior(X.to(self.process.X), output_indices, observation_noise, posterior_transform)

    def condition_on_observations(
        self, X: Tensor, Y: Tensor, noise: Tensor | None = None, **kwargs: Any
    ) -> Model:
        """The model with further data, wherever they lie."""
        to = self.process.X
        return super().condition_on_observations(
            X.to(to), Y.to(to), noise=None if noise is None else noise.to(to), **kwargs
        )

    def state(self) -> dict[str, Tensor]:
        """The whitened hyperparameters."""
        return self.process.state()

    def noise_variance(self) -> Tensor:
        """(1,), the learned noise variance, model units; known variances of observations come on top."""
        return self.process.noise(self.process.coordinates).detach().cpu()[None]

    def figures(self) -> dict[str, Any]:
        return self.process.figures()
