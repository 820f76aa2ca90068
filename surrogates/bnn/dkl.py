"""Deep kernel learning that starts at the Gaussian process, and stays there where features do not help.

Wilson et al. 2016, "Deep kernel learning". The covariance is a Matern-5/2 of the distance

    r^2 = sum_j (x_j - x_j')^2 / l_j^2 + sum_k t_k^2 (g_k(x) - g_k(x'))^2,   k <= min(d, 8),

in the inputs themselves and in the features g of a network: without features it is the Gaussian process, from whose
fitted lengthscales and noise training starts. Whitened weights, lengthscales, t and noise climb the evidence times
their priors. The evidence alone overfits (Ober, Rasmussen and van der Wilk 2021, "The promises and pitfalls of deep
kernel learning"), so each of several networks, its Gaussian process's hyperparameters included, is shown another part
of the data, and training stops where the rest is predicted best: before the first step, if nowhere else, and then the
posterior is the Gaussian process's, with more noise where the rest asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.posteriors.posterior import Posterior
from torch import Tensor

from surrogates.bnn.kernel_fit import NOISE_FLOOR
from surrogates.bnn.kernel_gp import gaussian_posterior
from surrogates.bnn.kernels import MaternKernel
from surrogates.bnn.options import DklOptions
from surrogates.errors import NotEnoughData
from surrogates.gp.model import FastGP
from surrogates.gp.options import GpOptions
from surrogates.members import OutcomeModel, refuse_noise
from surrogates.mixtures import GaussianMixture
from surrogates.numerics.ascent import HELD_OUT_VARIANCE, ascended, held_out, noise_inflated
from surrogates.numerics.collapsed import LogNormal
from surrogates.numerics.conditioned import Conditioned, conditioned
from surrogates.numerics.fit_rows import drawn_rows
from surrogates.numerics.matern import matern52, squared_distance
from surrogates.numerics.networks import Network, Scales, group_of_columns
from surrogates.protocol import BuildRequest

MAX_FEATURES: Final = 8
FIRST_FEATURES: Final = 0.1
"""Standard deviation of the features' whitened weights at the start; at 0 the evidence would have no slope."""

FEATURE_SCALE: Final = LogNormal(0.0, 0.75)
"""Prior of t."""


class DeepKernel(OutcomeModel):
    """One outcome; see DklOptions.

    Coordinates of C networks z (C, P): hidden weights, weights of the features (H x k), lengthscales (g), t (k),
    noise, all whitened.
    """

    # BoTorch's cached roots are for Gaussian posteriors
    _supports_cache_root = False

    def __init__(self, request: BuildRequest) -> None:
        super().__init__(request)
        assert isinstance(request.options, DklOptions)
        self.options = request.options
        options, d = self.options, self.X.shape[-1]
        self.network = Network(d, options.width, options.depth, options.activation)
        self.kernel = MaternKernel(request.encoding.groups)
        self.n_features = min(d, MAX_FEATURES)
        # in a tuple: its parameters stay on the CPU and are none of this model's
        self._gp = (self._gaussian_process(slice(None)),)
        self.noise_prior = LogNormal(self.gp.prior.mean, self.gp.prior.sd)
        ends = np.cumsum(
            [
                self.network.n_weights,
                options.width * self.n_features,
                self.kernel.n_coordinates,
                self.n_features,
                1,
            ]
        ).tolist()
        self._parts = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
        self._z: Tensor | None = None
        self._report: dict[str, Any] = {}

    def fit(self, generator: torch.Generator) -> None:
        """The Gaussian process first, then features as long as they predict better. Raises: FitDiverged."""
        self.gp.fit(generator)
        kept = drawn_rows(self.y, self.options.fit_points, generator)
        n = self.options.n_members
        left_out = held_out(n, len(kept), generator).to(self.X.device)
        X, y, known = self.X[kept], self.y[kept], self.variances[kept].expand(n, -1)
        hidden = torch.where(left_out, torch.full_like(known, HELD_OUT_VARIANCE), known)

        def log_posterior(z: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                given = self._given(leaf, X, y, hidden)
                value = given.log_evidence + given.log_prior_of_constant
                value = value - 0.5 * leaf.double().square().sum(-1)
                (gradient,) = torch.autograd.grad(value.sum(), leaf)
            return value.detach(), gradient

        def score(z: Tensor) -> Tensor:
            given = self._given(z, X, y, hidden)
            K = self._covariance(z, X, X)
            half = K @ given.inverse_factor.transpose(-1, -2)
            mean = given.constant[:, None] + (K @ given.alpha[..., None])[..., 0]
            variance = self._noise(z)[:, None] + known + (1.0 - half.square().sum(-1)).clamp_min(0.0)
            density = -0.5 * ((2 * torch.pi * variance).log() + (y - mean).square() / variance)
            return density[left_out].mean()

        with torch.no_grad():
            z, step, reached = self._at_gaussian_process(), 0, None
            if bool(left_out.any()) and self.options.n_steps:
                start = self._starts(generator, [kept[~mask] for mask in left_out])
                louder = noise_inflated(start, score)
                trained, step, _ = ascended(log_posterior, louder, score, n_steps=self.options.n_steps)
                trained = noise_inflated(trained, score)
                reached = float(score(trained))
                if step == 0:
                    z[:, -1] += (trained - start)[:, -1].mean()
                else:
                    z = trained
            self._adopt(z)
        self._report = {"n_steps": step, "held_out_log_density": reached}

    @property
    def gp(self) -> FastGP:
        """The Gaussian process of all observations."""
        return self._gp[0]

    def _gaussian_process(self, rows: Tensor | slice) -> FastGP:
        """Of some observations."""
        request = self.request
        known = request.train_Yvar
        return FastGP(
            request.train_X[rows].double(),
            request.train_Y[rows].double(),
            None if known is None else known[rows].double(),
            groups=request.encoding.groups,
            options=GpOptions(noise=self.options.noise),
        )

    def _hyperparameters_of(self, gp: FastGP) -> Tensor:
        """(g + k + 1,): lengthscales, t and noise, whitened."""
        found, lengthscale = gp.core.hyperparameters, self.kernel.lengthscale
        lengthscales = (torch.as_tensor(found.log_lengthscales) - lengthscale.mean) / lengthscale.sd
        noise = (found.log_noise - self.noise_prior.mean) / self.noise_prior.sd
        return torch.cat(
            [lengthscales, torch.zeros(self.n_features).double(), torch.tensor([noise]).double()]
        )

    def _at_gaussian_process(self) -> Tensor:
        """(1, P): no features."""
        z = torch.zeros(1, self._parts[-1].stop, dtype=torch.float64)
        z[0, self._parts[2].start :] = self._hyperparameters_of(self.gp)
        return z.to(self.X)

    def _starts(self, generator: torch.Generator, shown: list[Tensor]) -> Tensor:
        """(C, P): nearly no features, and the hyperparameters of the observations shown to each network."""
        z = torch.randn(len(shown), self._parts[-1].stop, generator=generator, dtype=torch.float64)
        z[:, self._parts[1]] *= FIRST_FEATURES
        for row, rows in zip(z, shown, strict=True):
            gp = self._gaussian_process(rows.cpu())
            gp.fit(generator)
            row[self._parts[2].start :] = self._hyperparameters_of(gp)
        return z.to(self.X)

    def _noise(self, z: Tensor) -> Tensor:
        """(C,), float64."""
        return self.noise_prior(z[:, -1].double()).clamp_min(NOISE_FLOOR)

    def _embedded(self, z: Tensor, X: Tensor) -> Tensor:
        """Where the kernel measures distances, (C, n, d + k), float64, for X (n, d) or (C, n, d) in [-1, 1]."""
        ones = z.new_ones(len(z), 1, 1)
        scales = Scales(2.0 * ones, ones, ones.expand(-1, X.shape[-1], 1))
        h = self.network.features(z[:, self._parts[0]], scales, X)
        V = z[:, self._parts[1]].reshape(len(z), self.network.width, self.n_features)
        t = FEATURE_SCALE(z[:, self._parts[3]])[:, None, :]
        features = t * (h @ V) / self.network.width**0.5
        columns = group_of_columns(self.kernel.groups).to(z.device)
        lengthscales = self.kernel.lengthscale(z[:, self._parts[2]])[:, columns][:, None, :]
        # features in [0, 1] are half as far apart
        inputs = (0.5 * X / lengthscales).expand(len(z), -1, -1)
        return torch.cat([inputs.double(), features.double()], dim=-1)

    def _covariance(self, z: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """(C, n, m) between rows (n, d) and (m, d)."""
        return matern52(squared_distance(self._embedded(z, left), self._embedded(z, right)))

    def _given(self, z: Tensor, X: Tensor, y: Tensor, variances: Tensor) -> Conditioned:
        D = self._noise(z)[:, None] + variances
        return conditioned(self._covariance(z, X, X), D, y)

    def _adopt(self, z: Tensor) -> None:
        """Condition every network on all data. Raises: FitDiverged."""
        self._z = z
        with torch.no_grad():
            self._conditioned = self._given(z, self.X, self.y, self.variances)
            self._data = self._embedded(z, self.X)

    @property
    def positions(self) -> Tensor:
        """(C, P). Raises: NotEnoughData before the fit."""
        if self._z is None:
            raise NotEnoughData("fit the model first")
        return self._z

    def moments(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Means (C, b, q) and covariances (C, b, q, q) of the latent function at X (b, q, d), float64."""
        z, given = self.positions, self._conditioned
        there = self._embedded(z, self.rows(X))
        cross = matern52(squared_distance(there, self._data))
        half = (cross @ given.inverse_factor.transpose(-1, -2)).reshape(len(z), *X.shape[:-1], -1)
        batches = there.reshape(len(z), *X.shape[:-1], -1)
        own = matern52(squared_distance(batches, batches))
        return given.mean(cross).reshape(len(z), *X.shape[:-1]), own - half @ half.transpose(-1, -2)

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,  # noqa: FBT001, FBT002  BoTorch's signature
        posterior_transform: PosteriorTransform | None = None,
    ) -> Posterior:
        """Joint Gaussian, or mixture of them, at X (..., q, d). Raises: UnsupportedError for observation noise."""
        refuse_noise(observation_noise, output_indices)
        q, shape = X.shape[-2], X.shape[:-1]
        means, covariances = self.moments(X.reshape(-1, *X.shape[-2:]))
        means = means.reshape(-1, *shape)
        covariances = covariances.reshape(-1, *shape, q)
        if len(means) == 1:
            return gaussian_posterior(means[0], covariances[0], X, posterior_transform)
        mixture = GaussianMixture(means.movedim(0, -2).to(X), covariances.movedim(0, -3).to(X))
        return mixture.transformed(posterior_transform)

    def state(self) -> dict[str, Tensor]:
        """The networks with their hyperparameters, all of it `draw.`: no later fit starts from them."""
        return {"draw.positions": self.positions.cpu()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the networks over and condition them on this model's data."""
        self._adopt(state["draw.positions"].to(self.X))

    def noise_variance(self) -> Tensor:
        """(1,), the mean of the networks' noise variances; known variances of observations come on top."""
        return self._noise(self.positions).mean()[None].cpu()

    def figures(self) -> dict[str, Any]:
        z = self.positions
        return self._report | {
            "n_networks": len(z),
            "noise_variance": float(self.noise_variance()),
            "feature_scales": FEATURE_SCALE(z[:, self._parts[3]]).tolist(),
        }
