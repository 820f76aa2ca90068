"""Neural-linear model: features of trained networks under exact Bayesian linear regression.

Snoek et al. 2015, "Scalable Bayesian optimization using deep neural networks", with two differences. The hidden
weights and all scales maximise their posterior with the last layer integrated out (`numerics.collapsed`,
log p(z | y)) instead of the fit of one last layer. They start from the infinitely wide network: random features
under the scales of its highest evidence, which already are a model. And training stops where observations left out of
each network are predicted best: the maximum itself is one feature that is y, sure of it and useless elsewhere.
Several networks are kept as an equally weighted mixture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from botorch.acquisition.objective import PosteriorTransform
from torch import Tensor

from surrogates.bnn.infinite_width import scales_of_infinite_width
from surrogates.bnn.options import NeuralLinearOptions
from surrogates.bnn.priors import network_prior
from surrogates.errors import NotEnoughData
from surrogates.members import OutcomeModel, refuse_noise
from surrogates.mixtures import GaussianMixture
from surrogates.numerics.ascent import HELD_OUT_VARIANCE, ascended, held_out, noise_inflated
from surrogates.numerics.collapsed import CollapsedPosterior
from surrogates.numerics.fit_rows import drawn_rows
from surrogates.protocol import BuildRequest


class NeuralLinear(OutcomeModel):
    """One outcome; see NeuralLinearOptions."""

    # BoTorch's cached roots are for Gaussian posteriors
    _supports_cache_root = False

    def __init__(self, request: BuildRequest) -> None:
        super().__init__(request)
        assert isinstance(request.options, NeuralLinearOptions)
        self.options = request.options
        prior = network_prior(request, has_relevances=self.options.ard)
        self.network = prior.network
        self.target = prior.given(self.X, self.y, self.variances)
        self._report: dict[str, Any] = {}
        self._positions: Tensor | None = None

    def fit(self, generator: torch.Generator) -> None:
        """Train the stack on a subset of many data, up to where it predicts best. Raises: FitDiverged."""
        kept = drawn_rows(self.y, self.options.fit_points, generator)
        n = self.options.n_members
        left_out = held_out(n, len(kept), generator).to(self.X.device)
        known = self.variances[kept].expand(n, -1)
        part = replace(
            self.target,
            X=self.X[kept],
            y=self.y[kept],
            variances=torch.where(left_out, torch.full_like(known, HELD_OUT_VARIANCE), known),
        )

        def score(positions: Tensor) -> Tensor:
            return _predicted(part, positions, left_out, known)

        with torch.no_grad():
            z, step, reached = self._starts(generator), 0, None
            if bool(left_out.any()):
                z, step, _ = ascended(part, noise_inflated(z, score), score, n_steps=self.options.n_steps)
                z = noise_inflated(z, score)
                reached = float(score(z))
            self._adopt(z)
        self._report = {"n_steps": step, "held_out_log_density": reached}

    def _starts(self, generator: torch.Generator) -> Tensor:
        """(R, P) draws of the hidden weights' prior, under the scales of the infinitely wide network."""
        z = torch.randn(
            self.options.n_members, self.target.n_coordinates, generator=generator, dtype=torch.float64
        )
        z[:, self.network.n_weights :] = scales_of_infinite_width(self.request, self.target, generator)
        return z.to(self.X)

    def _adopt(self, positions: Tensor) -> None:
        """Solve for the last layers of networks at (R, P), on all data."""
        self._positions = positions
        with torch.no_grad():
            self._last = self.target.last_layer(positions)
            self._matrices = self.network.matrices(positions, self.target.scales(positions))

    @property
    def positions(self) -> Tensor:
        """(R, P), hidden weights and scales. Raises: NotEnoughData before the fit."""
        if self._positions is None:
            raise NotEnoughData("fit the model first")
        return self._positions

    def moments(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Means (..., R, q) and covariances (..., R, q, q) of the latent function at X (..., q, d), float64."""
        z = self.positions
        psi = self.target.design(z, self.network.through(self._matrices, self.rows(X)))
        means = (psi @ self._last.mean[..., None])[..., 0]
        half = (psi @ self._last.factor).reshape(len(z), *X.shape[:-1], -1)
        covariances = half @ half.transpose(-1, -2)
        means = means.reshape(len(z), *X.shape[:-1])
        return means.movedim(0, -2), covariances.movedim(0, -3)

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,  # noqa: FBT001, FBT002  BoTorch's signature
        posterior_transform: PosteriorTransform | None = None,
    ) -> GaussianMixture:
        """Joint mixture at X (..., q, d), on X's device. Raises: UnsupportedError for observation noise."""
        refuse_noise(observation_noise, output_indices)
        means, covariances = self.moments(X)
        return GaussianMixture(means.to(X), covariances.to(X)).transformed(posterior_transform)

    def state(self) -> dict[str, Tensor]:
        """The networks with their scales, all of it `draw.`: no later fit starts from them."""
        return {"draw.positions": self.positions.cpu()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the networks over; their last layers are solved for on this model's data."""
        self._adopt(state["draw.positions"].to(self.X))

    def noise_variance(self) -> Tensor:
        """(1,), the mean of the networks' noise variances; known variances of observations come on top."""
        return self.target.noise(self.positions).double().mean()[None].cpu()

    def figures(self) -> dict[str, Any]:
        z = self.positions
        scales = self.target.scales(z)
        return self._report | {
            "weight_scales": scales.weight.flatten().tolist(),
            "output_scales": self.target.output_scale(z).tolist(),
            "noise_variances": self.target.noise(z).tolist(),
        }


def _predicted(target: CollapsedPosterior, z: Tensor, left_out: Tensor, known: Tensor) -> Tensor:
    """Mean log density () of what each network (C, P) was not shown; left_out, known variances (C, n)."""
    last = target.last_layer(z)
    psi = target.design(z, target.network.features(z, target.scales(z), target.X))
    mean = (psi @ last.mean[..., None])[..., 0]
    variance = (psi @ last.factor).square().sum(-1) + target.noise(z).double()[:, None] + known
    density = -0.5 * ((2 * torch.pi * variance).log() + (target.y - mean).square() / variance)
    return density[left_out].mean()
