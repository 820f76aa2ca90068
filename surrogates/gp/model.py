"""A Gaussian process whose fit is a closed-form MAP in NumPy, and whose posterior is GPyTorch's, with gradients.

Recipe: Matern-5/2 with one lengthscale a column group, unit output scale, generalised least squares mean,
priors as in `numerics.exact_gp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from botorch.models import SingleTaskGP
from botorch.models.utils.gpytorch_modules import MIN_INFERRED_NOISE_LEVEL
from gpytorch.constraints import GreaterThan, Positive
from gpytorch.kernels import MaternKernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood
from gpytorch.means import ConstantMean
from torch import Tensor

from surrogates.compute import dtype_of
from surrogates.errors import FitDiverged, NotEnoughData
from surrogates.gp.options import GpOptions
from surrogates.gp.placed import Placed, chosen_precision
from surrogates.gp.priors import noise_floor
from surrogates.members import checked_data
from surrogates.numerics.exact_gp import (
    LOW_NOISE,
    STRONG_NOISE,
    Array,
    Groups,
    Hyperparameters,
    Likelihood,
    NoisePrior,
    Posterior,
    condition,
    fit_map,
)
from surrogates.numerics.fit_rows import fit_rows

REFIT_GROWTH: Final = 0.1
"""Above 200 observations, a warm start is taken as it is until there are this much more."""

REUSE_ABOVE: Final = 200


def noise_prior(wanted: str, *, has_variances: bool) -> NoisePrior:
    """The prior that an option `noise` names."""
    return STRONG_NOISE if wanted == "strong" or (wanted == "auto" and has_variances) else LOW_NOISE


class FastGP(Placed, SingleTaskGP):
    """One outcome; train_X (n, d) features in [0, 1], train_Y (n, 1) model units, train_Yvar (n, 1) or None.

    `groups` are the columns that share a lengthscale; `warm` is a `state()` of an earlier fit. The fit is NumPy's, in
    double precision; GPyTorch's side, which Monte Carlo acquisitions ask, lies on `device` in the options' precision.
    """

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        train_Yvar: Tensor | None = None,
        *,
        groups: Groups | None = None,
        options: GpOptions | None = None,
        warm: Mapping[str, Tensor] | None = None,
        device: torch.device | None = None,
    ) -> None:
        checked_data(train_X, train_Y, train_Yvar)
        d = train_X.shape[-1]
        place = torch.zeros((), device=device or train_X.device, dtype=dtype_of(options or GpOptions()))
        placed_Yvar = None if train_Yvar is None else train_Yvar.to(place)
        likelihood = (
            GaussianLikelihood(noise_constraint=GreaterThan(MIN_INFERRED_NOISE_LEVEL / 1e4))
            if placed_Yvar is None
            else FixedNoiseGaussianLikelihood(noise=placed_Yvar.squeeze(-1).clamp_min(1e-10))
        )
        with chosen_precision():
            super().__init__(
                train_X=train_X.to(place),
                train_Y=train_Y.to(place),
                train_Yvar=placed_Yvar,
                likelihood=likelihood,
                covar_module=MaternKernel(nu=2.5, ard_num_dims=d, lengthscale_constraint=Positive()),
                mean_module=ConstantMean(),
                outcome_transform=None,
                input_transform=None,
            )
        self.groups: Groups = groups or tuple((column,) for column in range(d))
        self.options = options or GpOptions()
        self.rungs: list[str] = []
        self._X = train_X.detach().cpu().numpy().astype(np.float64)
        self._y = train_Y.detach().cpu().numpy().astype(np.float64)[:, 0]
        known = None if train_Yvar is None else train_Yvar.detach().cpu().numpy().astype(np.float64)[:, 0]
        self._variances: Array = np.zeros(len(self._y)) if known is None else known
        self._has_variances = known is not None
        self._warm = dict(warm or {})
        self._n_at_fit = 0
        self._core: Posterior | None = None

    @property
    def core(self) -> Posterior:
        """The NumPy posterior behind this model. Raises: NotEnoughData before the fit."""
        if self._core is None:
            raise NotEnoughData("fit the model first")
        return self._core

    def fit(self, generator: torch.Generator) -> None:
        """MAP hyperparameters, climbing the ladder where needed: warm start, prior start, jitter, isotropic.

        Raises: FitDiverged where every rung fails.
        """
        seed = int(torch.randint(2**31, (1,), generator=generator).item())
        self._adopt(self._hyperparameters(np.random.default_rng(seed)))

    def _hyperparameters(self, rng: np.random.Generator) -> Hyperparameters:
        warm = self._warm_start()
        n_before = int(self._warm["n_at_fit"].item()) if "n_at_fit" in self._warm else 0
        n = len(self._y)
        if warm is not None and n > REUSE_ABOVE and n_before <= n < (1 + REFIT_GROWTH) * n_before:
            self._n_at_fit = n_before
            return warm
        self._n_at_fit = n
        likelihood = self._likelihood(rng)
        prior_start = Hyperparameters.at_prior(len(self.groups), self.prior)
        rungs = [("warm", warm, 0.0)] if warm is not None else []
        rungs += [("prior", prior_start, 0.0), ("jitter", prior_start, 1e-4)]
        for name, start, jitter in rungs:
            try:
                found = fit_map(likelihood, start, jitter=jitter)
                condition(self._X, self._y, found, self.groups, self._variances)
            except FitDiverged:
                self.rungs.append(f"{name}: diverged")
                continue
            return found
        return self._isotropic(rng)

    def _isotropic(self, rng: np.random.Generator) -> Hyperparameters:
        """The simpler model: one lengthscale for all columns."""
        rows = fit_rows(self._y, self.options.fit_points, rng)
        everything = (tuple(range(self._X.shape[1])),)
        likelihood = Likelihood(self._X[rows], self._y[rows], self._variances[rows], everything, STRONG_NOISE)
        found = fit_map(likelihood, Hyperparameters.at_prior(1, STRONG_NOISE), jitter=1e-4)
        self.rungs.append("isotropic: used")
        return Hyperparameters(np.full(len(self.groups), found.log_lengthscales[0]), found.log_noise)

    @property
    def prior(self) -> NoisePrior:
        """The noise prior the options ask for."""
        return noise_prior(self.options.noise, has_variances=self._has_variances)

    def _likelihood(self, rng: np.random.Generator) -> Likelihood:
        rows = fit_rows(self._y, self.options.fit_points, rng)
        return Likelihood(self._X[rows], self._y[rows], self._variances[rows], self.groups, self.prior)

    def _warm_start(self) -> Hyperparameters | None:
        log_lengthscales = self._warm.get("log_lengthscales")
        if log_lengthscales is None or log_lengthscales.shape != (len(self.groups),):
            return None
        return Hyperparameters(
            log_lengthscales.cpu().numpy().astype(np.float64), float(self._warm["log_noise"].item())
        )

    def _adopt(self, hyperparameters: Hyperparameters) -> None:
        """Condition on the data and write the hyperparameters back into GPyTorch's modules."""
        self._core = condition(self._X, self._y, hyperparameters, self.groups, self._variances)
        # only from training mode does evaluation forget what was computed before
        self.train()
        to = {"dtype": self.train_inputs[0].dtype, "device": self.train_inputs[0].device}
        self.covar_module.lengthscale = torch.as_tensor(self._core.lengthscales, **to)[None, :]
        self.mean_module.constant = torch.as_tensor(self._core.mean, **to)
        noise = self._core.noise
        if to["dtype"] == torch.float32:
            noise = max(noise, noise_floor(self.train_inputs[0]))
        if self._has_variances:
            self.likelihood.noise = torch.as_tensor(self._variances + noise, **to)
        else:
            self.likelihood.noise = torch.as_tensor(noise, **to)
        self.eval()

    def state(self) -> dict[str, Tensor]:
        """Hyperparameters, as `load_state` and a warm start take them."""
        hyperparameters = self.core.hyperparameters
        return {
            "log_lengthscales": torch.as_tensor(hyperparameters.log_lengthscales),
            "log_noise": torch.tensor(hyperparameters.log_noise, dtype=torch.float64),
            "n_at_fit": torch.tensor(self._n_at_fit, dtype=torch.int64),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take hyperparameters over and condition on this model's data."""
        self._n_at_fit = int(state["n_at_fit"].item())
        self._adopt(
            Hyperparameters(
                state["log_lengthscales"].cpu().numpy().astype(np.float64), float(state["log_noise"].item())
            )
        )

    def noise_variance(self) -> Tensor:
        """(1,), the learned noise variance, model units; known variances of observations come on top."""
        return torch.tensor([self.core.noise], dtype=torch.float64)
