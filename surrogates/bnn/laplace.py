"""Linearised Laplace approximation: a trained network, and the exact posterior of its linearisation around it.

MacKay 1992, "A practical Bayesian framework for backpropagation networks"; Immer, Korzepa and Bauer 2021, "Improving
predictions of Bayesian neural nets via local linearization". In whitened weights theta ~ N(0, I), with J = df / dtheta
at the most probable theta and D the noise variances,

    f(x) ~ N(f_MAP(x), J(x) S J(x)^T),   S = (J^T D^-1 J + I)^-1,
    J(x) S J(x')^T = k(x, x') - k(x, X) (K + D)^-1 k(X, x'),   k(x, x') = J(x) J(x')^T:

the second line is exact and needs n x n instead of P x P. Scales and noise maximise the Laplace evidence
log p(y | theta) - |theta|^2 / 2 - log |I + D^-1 K| / 2, in turns with the weights: the actual weights are kept while
their scales move. Several networks are trained as one stack, and the one of the highest evidence is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.posteriors.posterior import Posterior
from torch import Tensor

from surrogates.bnn.kernel_gp import gaussian_posterior
from surrogates.bnn.options import LaplaceOptions
from surrogates.bnn.priors import network_prior
from surrogates.errors import FitDiverged, NotEnoughData
from surrogates.members import OutcomeModel, refuse_noise
from surrogates.numerics.collapsed import CollapsedPosterior
from surrogates.numerics.conditioned import positive_factor
from surrogates.numerics.fit_rows import drawn_rows
from surrogates.numerics.linearised import Weights, climbed, log_joint, tangent_at, values
from surrogates.numerics.networks import Network, Scales
from surrogates.numerics.tangent import Tangent, tangent_covariance
from surrogates.protocol import BuildRequest

SCALE_STEPS: Final = 10
SCALE_RATE: Final = 0.1
FIRST_NOISE: Final = 4.0
PATIENCE: Final = 5


class LaplaceNetwork(OutcomeModel):
    """One outcome; see LaplaceOptions."""

    def __init__(self, request: BuildRequest) -> None:
        super().__init__(request)
        assert isinstance(request.options, LaplaceOptions)
        self.options = request.options
        prior = network_prior(request, has_relevances=self.options.ard)
        self.network = prior.network
        self.target = prior.given(self.X, self.y, self.variances)
        self._report: dict[str, Any] = {}
        self._weights: Weights | None = None

    def fit(self, generator: torch.Generator) -> None:
        """Train the stack, keep the best network, train it on all data. Raises: FitDiverged."""
        kept = drawn_rows(self.y, self.options.fit_points, generator)
        part = replace(self.target, X=self.X[kept], y=self.y[kept], variances=self.variances[kept])
        with torch.no_grad():
            weights = self._starts(generator)
            best, evidence, n_idle = (
                weights,
                torch.full_like(part.y[:1], -torch.inf).expand(len(weights.z)),
                0,
            )
            for _ in range(self.options.n_rounds):
                weights = climbed(part, weights, n_steps=self.options.n_steps)
                weights, reached = rescaled_by_evidence(part, weights)
                is_better = reached > evidence
                # the turns climb no common hill: beyond its best round a network only learns the noise
                best, evidence = weights.where(is_better, best), torch.where(is_better, reached, evidence)
                n_idle = 0 if bool(is_better.any()) else n_idle + 1
                if n_idle == PATIENCE:
                    break
            chosen = evidence.argmax()[None]
            if not bool(torch.isfinite(evidence[chosen])):
                raise FitDiverged("no network has a finite evidence")
            self._adopt(climbed(self.target, best.chosen(chosen), n_steps=4 * self.options.n_steps))
        self._report = {"log_evidence": float(evidence[chosen]), "log_evidences": evidence.tolist()}

    def _starts(self, generator: torch.Generator) -> Weights:
        """Draws of the prior, with scales at its centre and much noise; an earlier fit's network comes first."""
        n, n_weights = self.options.n_restarts, self.network.n_weights
        z = torch.randn(n, self.target.n_coordinates, generator=generator, dtype=torch.float64)
        z[:, n_weights:] = 0.0
        z[:, -1] = FIRST_NOISE
        last = torch.randn(n, self.network.width + 1, generator=generator, dtype=torch.float64)
        warm = self.request.warm or {}
        before, before_last = warm.get("hidden"), warm.get("last")
        if before is not None and before_last is not None:
            is_alike = before.shape == z.shape[1:] and before_last.shape == last.shape[1:]
            if is_alike:
                z[0], last[0] = before, before_last
        return Weights(z.to(self.X), last.to(self.X))

    def _adopt(self, weights: Weights) -> None:
        """Linearise around one network."""
        self._weights = weights
        z = weights.z
        with torch.no_grad():
            self._scales, self._output_scale = self.target.scales(z), self.target.output_scale(z)
            self._data = tangent_at(self.target, weights, self.X)
            K = self._covariance(self._data, self._data)[0]
            factor = positive_factor(K, self.target.noise(z).double() + self.variances)
            identity = torch.eye(len(K), dtype=K.dtype, device=K.device)
            self._inverse_factor = torch.linalg.solve_triangular(factor, identity, upper=False)

    @property
    def weights(self) -> Weights:
        """Of the one network. Raises: NotEnoughData before the fit."""
        if self._weights is None:
            raise NotEnoughData("fit the model first")
        return self._weights

    def _covariance(self, left: Tangent, right: Tangent) -> Tensor:
        return tangent_covariance(left, right, self._scales, self._output_scale)

    def moments(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (b, q) and covariance (b, q, q) of the latent function at X (b, q, d), float64."""
        rows, shape = self.rows(X), X.shape[:-1]
        there = tangent_at(self.target, self.weights, rows)
        cross = self._covariance(there, self._data).reshape(*shape, -1)
        batches = there.reshaped(*shape)
        half = cross @ self._inverse_factor.T
        mean = values(self.target, self.weights, rows).reshape(shape)
        return mean.double(), self._covariance(batches, batches) - half @ half.transpose(-1, -2)

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,  # noqa: FBT001, FBT002  BoTorch's signature
        posterior_transform: PosteriorTransform | None = None,
    ) -> Posterior:
        """Joint Gaussian at X (..., q, d), on X's device. Raises: UnsupportedError for observation noise."""
        refuse_noise(observation_noise, output_indices)
        mean, covariance = self.moments(X.reshape(-1, *X.shape[-2:]))
        q = X.shape[-2]
        return gaussian_posterior(
            mean.reshape(X.shape[:-1]), covariance.reshape(*X.shape[:-2], q, q), X, posterior_transform
        )

    def state(self) -> dict[str, Tensor]:
        """The network: hidden weights with their scales and the last layer; a later fit starts from it, too."""
        return {"hidden": self.weights.z[0].cpu(), "last": self.weights.last[0].cpu()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Linearise around a stored network, on this model's data."""
        z, last = state["hidden"], state["last"]
        self._adopt(Weights(z.to(self.X)[None], last.to(self.X)[None]))

    def noise_variance(self) -> Tensor:
        """(1,), the noise variance of the highest evidence; known variances of observations come on top."""
        return self.target.noise(self.weights.z).double().cpu()

    def figures(self) -> dict[str, Any]:
        z = self.weights.z
        return self._report | {
            "weight_scale": float(self._scales.weight),
            "bias_scale": float(self._scales.bias),
            "output_scale": float(self._output_scale),
            "noise_variance": float(self.target.noise(z)),
            "log_joint": float(log_joint(self.target, self.weights)),
        }


def rescaled_by_evidence(target: CollapsedPosterior, weights: Weights) -> tuple[Weights, Tensor]:
    """The same networks under scales of a higher Laplace evidence, and those evidences (C,).

    Raises: FitDiverged.
    """
    z, last, n = weights.z, weights.last, target.network.n_weights
    scales, output_scale = target.scales(z), target.output_scale(z)
    there = tangent_at(target, weights, target.X)
    residual = target.y - values(target, weights, target.X).double()

    def evidence(u: Tensor) -> tuple[Tensor, Weights]:
        moved = torch.cat([z[:, :n], u], dim=-1)
        hidden = rewhitened(target.network, z, scales, target.scales(moved))
        ratio = (output_scale / target.output_scale(moved))[:, None]
        same = Weights(
            torch.cat([hidden, u], dim=-1), torch.cat([last[:, :-1] * ratio, last[:, -1:]], dim=-1)
        )
        D = target.noise(moved).double()[:, None] + target.variances
        K = tangent_covariance(there, there, target.scales(moved), target.output_scale(moved))
        determinant = 2.0 * positive_factor(K, D).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        priors = same.z.double().square().sum(-1) + same.last.double().square().sum(-1)
        return -0.5 * ((residual.square() / D).sum(-1) + priors + determinant), same

    u = z[:, n:].detach().clone()
    with torch.enable_grad():
        u.requires_grad_()
        optimiser = torch.optim.Adam([u], lr=SCALE_RATE)
        for _ in range(SCALE_STEPS):
            optimiser.zero_grad()
            (-evidence(u)[0].sum()).backward()
            optimiser.step()
    with torch.no_grad():
        value, same = evidence(u)
    return same, value


def rewhitened(network: Network, z: Tensor, old: Scales, new: Scales) -> Tensor:
    """Whitened coordinates (C, P) under new scales of the weights that z has under the old ones."""
    parts = []
    for i, layer in enumerate(network.layers):
        ratio = old.weight / new.weight
        if i == 0:
            ratio = ratio * old.relevance / new.relevance
        weights = z[:, layer.weights].reshape(len(z), layer.fan_in, layer.fan_out) * ratio
        parts += [weights.reshape(len(z), -1), z[:, layer.biases] * (old.bias / new.bias)[:, 0]]
    return torch.cat(parts, dim=-1)
