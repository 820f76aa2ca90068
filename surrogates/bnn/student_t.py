"""Student-t process: a Gaussian process whose output scale has an inverse gamma prior and is integrated out.

Lee et al. 2021, "Scale mixtures of neural network Gaussian processes"; Shah et al. 2014, "Student-t processes as
alternatives to Gaussian processes", for the noise that shares the scale. With s^2 ~ InvGamma(alpha, beta),
y | s^2 ~ N(m, s^2 K~) and K~ = K + D over n observations,

    f* | y ~ t_nu(mean*, c Sigma*),   nu = 2 alpha + n,   c = (2 beta + r^T K~^-1 r) / nu,   r = y - m,

with mean* and Sigma* those of the Gaussian process: wider intervals from few data, and wider ones where the data
vary more than the prior expects. beta is alpha here: without data the scale is about 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from botorch.acquisition.objective import PosteriorTransform
from torch import Tensor

from surrogates.bnn.kernel_fit import KernelFit
from surrogates.bnn.kernels import MaternKernel, NetworkKernel, WhitenedKernel
from surrogates.bnn.options import StudentTOptions
from surrogates.bnn.priors import noise_prior
from surrogates.compute import dtype_of
from surrogates.members import OutcomeModel, refuse_noise
from surrogates.mixtures import StudentTPosterior
from surrogates.numerics.collapsed import LogNormal
from surrogates.numerics.conditioned import Conditioned
from surrogates.protocol import BuildRequest


class ScaleMixtureFit(KernelFit):
    """Hyperparameters under the Student-t evidence; known variances of observations share the scale, too."""

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        variances: Tensor,
        *,
        kernel: WhitenedKernel,
        noise: LogNormal,
        alpha: float,
    ) -> None:
        super().__init__(X, y, variances, kernel=kernel, noise=noise)
        self.alpha = alpha

    def log_evidence(self, given: Conditioned) -> Tensor:
        """Log density of y under t_{2 alpha}(m, K~)."""
        n, alpha = given.alpha.shape[-1], self.alpha
        constant = math.lgamma(alpha + n / 2) - math.lgamma(alpha) - n / 2 * math.log(2 * math.pi * alpha)
        stretch = torch.log1p(given.quadratic / (2 * alpha))
        return constant - 0.5 * given.log_determinant - (alpha + n / 2) * stretch

    @property
    def degrees(self) -> float:
        """Degrees of freedom after the data."""
        return 2 * self.alpha + len(self.y)

    @property
    def scale(self) -> float:
        """By how much covariances are larger than those of the Gaussian process."""
        return (2 * self.alpha + float(self.given.quadratic)) / self.degrees


class StudentTProcess(OutcomeModel):
    """One outcome; see StudentTOptions."""

    # BoTorch's cached roots are for Gaussian posteriors
    _supports_cache_root = False

    def __init__(self, request: BuildRequest) -> None:
        super().__init__(request)
        assert isinstance(request.options, StudentTOptions)
        self.options = request.options
        self.process = ScaleMixtureFit(
            request.train_X.to(self.y),
            self.y,
            self.variances,
            kernel=_kernel(request),
            noise=noise_prior(request),
            alpha=self.options.alpha,
        )

    def fit(self, generator: torch.Generator) -> None:
        """Maximum a posteriori hyperparameters, on a subset of many data. Raises: FitDiverged."""
        warm = self.process.warm_start(self.request.warm)
        start = torch.zeros(self.process.n_coordinates) if warm is None else warm
        self.process.fit([start], limit=self.options.fit_points, generator=generator)

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,  # noqa: FBT001, FBT002  BoTorch's signature
        posterior_transform: PosteriorTransform | None = None,
    ) -> StudentTPosterior:
        """Joint multivariate t at X (..., q, d), on X's device. Raises: UnsupportedError for observation noise."""
        refuse_noise(observation_noise, output_indices)
        mean, covariance = self.process.moments(X.to(self.y))
        found = StudentTPosterior(
            mean.to(X), (self.process.scale * covariance).to(X), degrees=self.process.degrees
        )
        return found.transformed(posterior_transform)

    def state(self) -> dict[str, Tensor]:
        """The whitened hyperparameters."""
        return self.process.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.process.adopt(state["coordinates"])

    def noise_variance(self) -> Tensor:
        """(1,), the learned noise variance under the posterior's mean scale."""
        degrees, process = self.process.degrees, self.process
        noise = process.noise(process.coordinates) * process.scale * degrees / (degrees - 2.0)
        return noise.cpu()[None]

    def figures(self) -> dict[str, Any]:
        return self.process.figures() | {
            "degrees_of_freedom": self.process.degrees,
            "scale": self.process.scale,
        }


def _kernel(request: BuildRequest) -> WhitenedKernel:
    options = request.options
    assert isinstance(options, StudentTOptions)
    groups = request.encoding.groups
    if options.kernel == "gp":
        return MaternKernel(groups, dtype_of(options))
    return NetworkKernel(groups, options.depth, options.activation, options.ard, dtype_of(options))
