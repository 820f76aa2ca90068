"""Linearised Laplace approximation: trained networks, each with the exact posterior of its linearisation around it.

MacKay 1992, "A practical Bayesian framework for backpropagation networks"; Immer, Korzepa and Bauer 2021, "Improving
predictions of Bayesian neural nets via local linearization". In whitened weights theta ~ N(0, I), with J = df / dtheta
at the most probable theta and D the noise variances,

    f(x) ~ N(f_MAP(x), J(x) S J(x)^T),   S = (J^T D^-1 J + I)^-1,
    J(x) S J(x')^T = k(x, x') - k(x, X) (K + D)^-1 k(X, x'),   k(x, x') = J(x) J(x')^T:

the second line is exact and needs n x n instead of P x P. Scales are those of the infinitely wide network
(`infinite_width`), the noise its, or as much more as the misfit of a network of finite width asks for by the Laplace
evidence log p(y | theta) - |theta|^2 / 2 - log |I + D^-1 K| / 2. Several networks, trained from different draws of the
prior, are an equally weighted mixture (Eschenhagen et al. 2021, "Mixtures of Laplace approximations for improved
post-hoc uncertainty in deep learning").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from botorch.acquisition.objective import PosteriorTransform
from torch import Tensor

from surrogates.bnn.infinite_width import scales_of_infinite_width
from surrogates.bnn.options import LaplaceOptions
from surrogates.bnn.priors import network_prior
from surrogates.errors import FitDiverged, NotEnoughData
from surrogates.members import OutcomeModel, refuse_noise
from surrogates.mixtures import GaussianMixture
from surrogates.numerics.collapsed import CollapsedPosterior
from surrogates.numerics.conditioned import positive_factor
from surrogates.numerics.fit_rows import drawn_rows
from surrogates.numerics.linearised import Weights, climbed, log_joint, tangent_at, values
from surrogates.numerics.networks import Scales
from surrogates.numerics.tangent import Tangent, tangent_covariance
from surrogates.protocol import BuildRequest

LAST_STEPS: Final = 5
"""Gauss-Newton steps on all observations, where the networks were trained on some."""

COOLING: Final = (8.0, 6.0, 4.0, 2.0, 0.0)
"""What is added to the log of the noise variance while training: with little noise from the start, a network is stuck
in the first valley it meets."""

NOISE_STEPS: Final = tuple(0.5 * i for i in range(21))
"""By how much the log of the noise variance is raised where a network of finite width does not fit as well."""

TOO_UNLIKELY: Final = 1.0
"""A network whose log joint density is so much for each observation below the best one's is stuck, and left out."""


class LaplaceNetworks(OutcomeModel):
    """One outcome; see LaplaceOptions."""

    # BoTorch's cached roots are for Gaussian posteriors
    _supports_cache_root = False

    def __init__(self, request: BuildRequest) -> None:
        super().__init__(request)
        assert isinstance(request.options, LaplaceOptions)
        self.options = request.options
        prior = network_prior(request, has_relevances=self.options.ard)
        self.network = prior.network
        self.target = prior.given(self.X, self.y, self.variances)
        self._weights: Weights | None = None

    def fit(self, generator: torch.Generator) -> None:
        """Train the stack, many data on a part first. Raises: FitDiverged."""
        kept = drawn_rows(self.y, self.options.fit_points, generator)
        part = replace(self.target, X=self.X[kept], y=self.y[kept], variances=self.variances[kept])
        with torch.no_grad():
            weights = self._trained(part, self._starts(generator))
            if len(kept) < len(self.y):
                weights = climbed(self.target, weights, n_steps=LAST_STEPS)
            weights, evidence = with_noise_of_highest_evidence(self.target, weights)
            if not bool(torch.isfinite(evidence.amax())):
                raise FitDiverged("no network has a finite evidence")
            self._adopt(weights.chosen(evidence >= evidence.amax() - TOO_UNLIKELY * len(self.y)))

    def _trained(self, part: CollapsedPosterior, weights: Weights) -> Weights:
        """More probable weights, under ever less noise."""
        noise = weights.z[:, -1:]
        for extra in COOLING:
            warmer = noise + extra / part.priors.noise.sd
            weights = Weights(torch.cat([weights.z[:, :-1], warmer], dim=-1), weights.last)
            weights = climbed(part, weights, n_steps=math.ceil(self.options.n_steps / len(COOLING)))
        return weights

    def _starts(self, generator: torch.Generator) -> Weights:
        """Draws of the prior under the scales of the infinitely wide network."""
        n, prior = self.options.n_members, self.target
        z = torch.randn(n, prior.n_coordinates, generator=generator, dtype=torch.float64)
        z[:, self.network.n_weights :] = scales_of_infinite_width(self.request, prior, generator)
        last = torch.randn(n, self.network.width + 1, generator=generator, dtype=torch.float64)
        return Weights(z.to(self.X), last.to(self.X))

    def _adopt(self, weights: Weights) -> None:
        """Linearise around R networks."""
        self._weights = weights
        z = weights.z
        with torch.no_grad():
            self._scales, self._output_scale = self.target.scales(z), self.target.output_scale(z)
            self._data = tangent_at(self.target, weights, self.X)
            K = tangent_covariance(self._data, self._data, self._scales, self._output_scale)
            factor = positive_factor(K, self.target.noise(z).double()[:, None] + self.variances)
            identity = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
            self._inverse_factor = torch.linalg.solve_triangular(factor, identity, upper=False)

    @property
    def weights(self) -> Weights:
        """Of the R networks. Raises: NotEnoughData before the fit."""
        if self._weights is None:
            raise NotEnoughData("fit the model first")
        return self._weights

    def moments(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Means (..., R, q) and covariances (..., R, q, q) of the latent function at X (..., q, d), float64."""
        rows = self.rows(X)
        shape = (len(self.weights.z), len(rows) // X.shape[-2], X.shape[-2])
        there = tangent_at(self.target, self.weights, rows)
        cross = tangent_covariance(there, self._data, self._scales, self._output_scale)
        half = (cross @ self._inverse_factor.transpose(-1, -2)).reshape(*shape, -1)
        batches = there.reshaped(*shape)
        covariances = self._own_covariance(batches) - half @ half.transpose(-1, -2)
        means = values(self.target, self.weights, rows).double().reshape(shape[0], *X.shape[:-1])
        covariances = covariances.reshape(shape[0], *X.shape[:-1], shape[-1])
        return means.movedim(0, -2), covariances.movedim(0, -3)

    def _own_covariance(self, batches: Tangent) -> Tensor:
        """(R, b, q, q) among the points of each batch."""
        s = self._scales
        between = Scales(s.weight[:, None], s.bias[:, None], s.relevance[:, None])
        return tangent_covariance(batches, batches, between, self._output_scale[:, None])

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
        """The networks with their scales and last layers, all of it `draw.`: no later fit starts from them."""
        return {"draw.positions": self.weights.z.cpu(), "draw.last": self.weights.last.cpu()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Linearise around stored networks, on this model's data."""
        self._adopt(Weights(state["draw.positions"].to(self.X), state["draw.last"].to(self.X)))

    def noise_variance(self) -> Tensor:
        """(1,), the mean of the networks' noise variances; known variances of observations come on top."""
        return self.target.noise(self.weights.z).double().mean()[None].cpu()

    def figures(self) -> dict[str, Any]:
        z = self.weights.z
        return {
            "weight_scale": float(self._scales.weight[0]),
            "bias_scale": float(self._scales.bias[0]),
            "output_scale": float(self._output_scale[0]),
            "noise_variances": self.target.noise(z).tolist(),
            "n_networks": len(z),
            "log_joints": log_joint(self.target, self.weights).tolist(),
        }


def with_noise_of_highest_evidence(target: CollapsedPosterior, weights: Weights) -> tuple[Weights, Tensor]:
    """The same networks (C) with as much noise as explains their misfit, and their Laplace evidences (C,)."""
    there = tangent_at(target, weights, target.X)
    K = tangent_covariance(there, there, target.scales(weights.z), target.output_scale(weights.z))
    squares = (target.y - values(target, weights, target.X).double()).square()
    n = target.network.n_weights
    prior = weights.z[:, :n].double().square().sum(-1) + weights.last.double().square().sum(-1)
    best, found = torch.full_like(prior, -torch.inf), weights.z[:, -1]
    for more in NOISE_STEPS:
        u = weights.z[:, -1] + more / target.priors.noise.sd
        moved = torch.cat([weights.z[:, :-1], u[:, None]], dim=-1)
        D = target.noise(moved).double()[:, None] + target.variances
        determinant = 2.0 * positive_factor(K, D).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        evidence = -0.5 * ((squares / D).sum(-1) + prior + determinant + u.double().square())
        found = torch.where(evidence > best, u, found)
        best = torch.maximum(evidence, best)
    return Weights(torch.cat([weights.z[:, :-1], found[:, None]], dim=-1), weights.last), best
