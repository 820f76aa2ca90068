"""A variational Gaussian process for thousands of observations: BoTorch's, fitted by the closed-form bound.

With Gaussian noise the optimal q(u) and the bound it attains are closed forms (`numerics.sparse_gp`), so the fit is
L-BFGS over lengthscales, noise and mean alone, and q(u) is written into the model. Stochastic training would look for
the same q(u) among m (m + 3) / 2 numbers, with learning rate, batches and an end to choose, and another result for
every seed; one pass over all data costs O(n m^2), which at 5,000 observations is a fraction of a second. Inducing
points are observations chosen by greedy variance reduction (Burt et al. 2020), once under the hyperparameters of a
subset and once more under those the bound found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from botorch.models import SingleTaskVariationalGP
from botorch.models.model import Model
from botorch.models.utils.inducing_point_allocators import GreedyVarianceReduction
from gpytorch.constraints import GreaterThan, Positive
from gpytorch.kernels import MaternKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ConstantMean
from scipy.optimize import fmin_l_bfgs_b
from torch import Tensor
from torch.distributions import Normal

from surrogates.compute import device_of, dtype_of
from surrogates.errors import FitDiverged, NotEnoughData
from surrogates.gp.model import noise_prior
from surrogates.gp.options import SvgpOptions
from surrogates.gp.placed import Placed, chosen_precision
from surrogates.gp.priors import SharedLengthscales
from surrogates.members import checked
from surrogates.numerics.exact_gp import (
    LENGTHSCALE_BOUNDS,
    LENGTHSCALE_SD,
    MANY_GROUPS,
    NOISE_CEILING,
    NOISE_FLOOR,
    Array,
    Hyperparameters,
    Likelihood,
    column_groups,
    fit_map,
    lengthscale_prior_mean,
)
from surrogates.numerics.fit_rows import fit_rows
from surrogates.numerics.sparse_gp import Collapsed
from surrogates.protocol import BuildRequest

START_POINTS: Final = 300
"""The first hyperparameters come from the closed-form fit of so many observations."""

ITERATIONS: Final = (40, 20)
"""L-BFGS iterations at most, for the first and the second choice of inducing points."""

JITTER: Final = 1e-6
SINGLE_JITTER: Final = 1e-4
"""What GPyTorch adds to K_uu in double and in single precision."""

FAILED: Final = 1e10


class PlacedVariationalGP(Placed, SingleTaskVariationalGP):
    """BoTorch's model, asked for points on any device, in any precision."""

    def at_home(self, X: Tensor) -> Tensor:
        return X.to(self.model.variational_strategy.inducing_points)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Where a fit ended; float64, on the model's device."""

    Z: Tensor
    """(m, d)"""
    log_lengthscales: Tensor
    """(g,)"""
    log_noise: Tensor
    """()"""
    mean: Tensor
    """()"""


class SparseGP(Model):
    """One outcome; see SvgpOptions."""

    def __init__(self, request: BuildRequest) -> None:
        super().__init__()
        assert isinstance(request.options, SvgpOptions)
        checked(request)
        self.request, self.options = request, request.options
        self.rungs: list[str] = []
        place = torch.zeros((), device=device_of(request.options, request.device), dtype=torch.float64)
        self._X, self._y = request.train_X.to(place), request.train_Y.to(place)[:, 0]
        known = request.train_Yvar
        self._variances = torch.zeros_like(self._y) if known is None else known.to(place)[:, 0]
        self._noise_prior = noise_prior(self.options.noise, has_variances=known is not None)
        self._group_of = torch.as_tensor(column_groups(request.encoding.groups), device=place.device)
        self._n_groups = len(request.encoding.groups)
        self._jitter = JITTER if dtype_of(self.options) == torch.float64 else SINGLE_JITTER
        self._fitted: Fitted | None = None
        self.inner: PlacedVariationalGP | None = None

    @property
    def num_outputs(self) -> int:
        return 1

    @property
    def batch_shape(self) -> torch.Size:
        return torch.Size()

    def fit(self, generator: torch.Generator) -> None:
        """Hyperparameters that maximise bound and prior, from the warm start or a subset's. Raises: FitDiverged."""
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        warm = self._warm_start()
        for name, theta in (("warm", warm), ("subset", None)):
            if name == "warm" and warm is None:
                continue
            found = self._climbed(self._subset_start(rng) if theta is None else theta)
            if found is not None:
                self._adopt(found)
                return
            self.rungs.append(f"{name}: diverged")
        raise FitDiverged("the bound has no finite maximum here")

    def _warm_start(self) -> Array | None:
        warm = self.request.warm or {}
        if not {"log_lengthscales", "log_noise", "mean"} <= warm.keys():
            return None
        if warm["log_lengthscales"].shape != (self._n_groups,):
            return None
        return np.r_[warm["log_lengthscales"].cpu().numpy(), float(warm["log_noise"]), float(warm["mean"])]

    def _subset_start(self, rng: np.random.Generator) -> Array:
        """(log l_1 .. log l_g, log s2, mean) of the exact Gaussian process on some observations."""
        y = self._y.cpu().numpy()
        rows = fit_rows(y, START_POINTS, rng)
        X, variances = self._X.cpu().numpy()[rows], self._variances.cpu().numpy()[rows]
        likelihood = Likelihood(X, y[rows], variances, self.request.encoding.groups, self._noise_prior)
        start = Hyperparameters.at_prior(self._n_groups, self._noise_prior)
        return np.r_[fit_map(likelihood, start, jitter=JITTER).flat(), y.mean()]

    def _climbed(self, theta: Array) -> Fitted | None:
        """From theta to the bound's maximum, inducing points chosen anew in between; None where nothing is finite."""
        for n_iterations in ITERATIONS:
            Z = self._inducing_points(self._lengthscales(torch.as_tensor(theta[: self._n_groups])))
            bounds = [(np.log(LENGTHSCALE_BOUNDS[0]), np.log(LENGTHSCALE_BOUNDS[1]))] * self._n_groups
            bounds += [(np.log(NOISE_FLOOR), np.log(NOISE_CEILING)), (None, None)]
            theta, value, _ = fmin_l_bfgs_b(
                self._objective, theta, args=(Z,), bounds=bounds, factr=1e9, pgtol=1e-3, maxiter=n_iterations
            )
            if not np.isfinite(value) or value >= FAILED:
                return None
        parts = torch.as_tensor(theta).to(self._X)
        return Fitted(Z, parts[: self._n_groups], parts[-2], parts[-1])

    def _objective(self, theta: Array, Z: Tensor) -> tuple[float, Array]:
        """Minus bound and log prior, and its gradient by autograd."""
        with torch.enable_grad():
            leaf = torch.as_tensor(theta).to(self._X).requires_grad_()
            at = Fitted(Z, leaf[: self._n_groups], leaf[-2], leaf[-1])
            try:
                value = -self._collapsed(at).bound() - self._log_prior(at)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                return FAILED, np.zeros_like(theta)
            (gradient,) = torch.autograd.grad(value, leaf)
        return value.item(), gradient.cpu().numpy()

    def _collapsed(self, at: Fitted) -> Collapsed:
        noise = self._variances + at.log_noise.exp()
        lengthscales = self._lengthscales(at.log_lengthscales)
        return Collapsed.of(self._X, at.Z, self._y - at.mean, noise, lengthscales, jitter=self._jitter)

    def _log_prior(self, at: Fitted) -> Tensor:
        noise = Normal(self._noise_prior.mean, self._noise_prior.sd).log_prob(at.log_noise)
        if self._n_groups > MANY_GROUPS:
            return noise + SharedLengthscales(self._n_groups).log_prob(at.log_lengthscales)
        independent = Normal(lengthscale_prior_mean(self._n_groups), LENGTHSCALE_SD)
        return noise + independent.log_prob(at.log_lengthscales).sum()

    def _lengthscales(self, by_group: Tensor) -> Tensor:
        """Of every column, (d,)."""
        return by_group.to(self._X).exp()[self._group_of]

    def _inducing_points(self, lengthscales: Tensor) -> Tensor:
        """At most `n_inducing` observations, those that leave the least variance of all others unexplained."""
        with torch.no_grad():
            return GreedyVarianceReduction().allocate_inducing_points(
                inputs=self._X,
                covar_module=_kernel(lengthscales),
                num_inducing=min(self.options.n_inducing, len(self._X)),
                input_batch_shape=torch.Size(),
            )

    def _adopt(self, fitted: Fitted) -> None:
        """Write hyperparameters and the optimal q(u) for this model's data into BoTorch's model."""
        lengthscales = self._lengthscales(fitted.log_lengthscales)
        mean = ConstantMean()
        mean.constant = fitted.mean.item()
        likelihood = GaussianLikelihood(noise_constraint=GreaterThan(NOISE_FLOOR / 2))
        likelihood.noise = fitted.log_noise.exp().item()
        with chosen_precision(), torch.no_grad():
            inner = PlacedVariationalGP(
                fitted.Z,
                likelihood=likelihood,
                covar_module=_kernel(lengthscales),
                mean_module=mean,
                learn_inducing_points=False,
                inducing_points=fitted.Z,
            )
            strategy: Any = inner.model.variational_strategy
            location, factor = self._collapsed(fitted).whitened()
            q = strategy._variational_distribution  # noqa: SLF001  there is no public way to set it
            q.variational_mean.copy_(location)
            q.chol_variational_covar.copy_(factor)
            # otherwise the first call starts q(u) afresh, from random numbers
            strategy.variational_params_initialized.fill_(1)
            # nothing is learned any more: what GPyTorch keeps of a call has no history, and can be copied
            self.inner = inner.to(dtype_of(self.options)).eval().requires_grad_(requires_grad=False)
        self._fitted = fitted

    @property
    def fitted(self) -> Fitted:
        """Raises: NotEnoughData before the fit."""
        if self._fitted is None:
            raise NotEnoughData("fit the model first")
        return self._fitted

    def posterior(self, X: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The posterior at X (..., q, d), on X's device and in X's precision. Raises: NotEnoughData."""
        if self.inner is None:
            raise NotEnoughData("fit the model first")
        return self.inner.posterior(X, *args, **kwargs)

    def state(self) -> dict[str, Tensor]:
        """Inducing points and hyperparameters; q(u) follows from them and the data."""
        found = self.fitted
        return {
            "inducing_points": found.Z.cpu(),
            "log_lengthscales": found.log_lengthscales.cpu(),
            "log_noise": found.log_noise.cpu(),
            "mean": found.mean.cpu(),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take them over and condition on this model's data."""
        names = ("inducing_points", "log_lengthscales", "log_noise", "mean")
        self._adopt(Fitted(*(state[name].to(self._X) for name in names)))

    def noise_variance(self) -> Tensor:
        """(1,), the learned noise variance; known variances of observations come on top."""
        return self.fitted.log_noise.exp().cpu().reshape(1)

    def figures(self) -> dict[str, Any]:
        """Lengthscales by feature, noise, inducing points, and the share of variance that they leave unexplained."""
        found = self.fitted
        collapsed = self._collapsed(found)
        explained = (collapsed.A.square().sum(0) * collapsed.noise).mean()
        values = self._lengthscales(found.log_lengthscales).tolist()
        return {
            "lengthscales": dict(zip(self.request.encoding.names, values, strict=True)),
            "noise_variance": found.log_noise.exp().item(),
            "n_inducing": len(found.Z),
            "unexplained": max(1.0 - explained.item(), 0.0),
        }


def _kernel(lengthscales: Tensor) -> MaternKernel:
    """Unit scale Matern-5/2 with these lengthscales (d,), no longer learned."""
    kernel = MaternKernel(nu=2.5, ard_num_dims=len(lengthscales), lengthscale_constraint=Positive())
    kernel = kernel.to(lengthscales)
    kernel.lengthscale = lengthscales[None, :]
    return kernel
