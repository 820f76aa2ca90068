"""Bayesian networks with the last layer integrated out: the posterior of hidden weights and scales, in closed form.

A network f(x) = s_o phi(x) w / sqrt(H) + s_c c with w, c ~ N(0, I) is linear in its last layer, so given its hidden
weights and scales the observations are Gaussian,

    y ~ N(0, K),   K = Psi Psi^T + D,   Psi = [s_o phi(X) / sqrt(H), s_c],   D = diag(s_n^2 + v),

and the last layer's posterior is that of Bayesian linear regression (Bishop 2006, eq. 3.49 to 3.51). What is left
to be sampled or optimised is p(z | y) ~ N(y | 0, K(z)) N(z | 0, I): the same posterior as that of the whole
network, without its stiffest directions. Every coordinate of z, the scales' included, has a standard normal prior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from surrogates.numerics.networks import Activation, Groups, Network, Scales, group_of_columns

OUTPUT_BIAS: Final = 1.0
"""s_c, in standard deviations of the outputs."""

NOISE_FLOOR: Final = 1e-5
"""Least noise variance: keeps K positive definite."""


N_SCALES: Final = 4
"""Weight, bias, output and noise: the last coordinates of a network."""


@dataclass(frozen=True, slots=True)
class LogNormal:
    """exp(mean + sd u), u ~ N(0, 1)."""

    mean: float
    sd: float

    def __call__(self, u: Tensor) -> Tensor:
        return torch.exp(self.mean + self.sd * u)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalePriors:
    """Priors of the scales; sd 0 holds one where it is."""

    weight: LogNormal
    """s_w"""
    bias: LogNormal
    """s_b"""
    relevance: LogNormal
    """t"""
    output: LogNormal
    """s_o"""
    noise: LogNormal
    """s_n^2, the variance"""


def default_scale_priors(activation: Activation, *, noise: LogNormal) -> ScalePriors:
    """Weight variance 2 to 6, bias variance about 1, function variance about 1 (Lee et al. 2018, section 3.2)."""
    weight = math.log(2.0 if activation == "relu" else 4.0) / 2
    output = math.log(1.0 if activation == "relu" else 2.0) / 2
    return ScalePriors(
        weight=LogNormal(weight, 0.5),
        bias=LogNormal(0.0, 0.5),
        relevance=LogNormal(0.0, 0.75),
        output=LogNormal(output, 0.5),
        noise=noise,
    )


@dataclass(frozen=True)
class LastLayer:
    """Posterior of the last layer of C networks: mean (C, H + 1) and what draws from it."""

    mean: Tensor
    factor: Tensor
    """(C, H + 1, H + 1), upper triangular R with R R^T the covariance"""

    def drawn(self, generator: torch.Generator) -> Tensor:
        """One draw for each network, (C, H + 1)."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype).to(self.mean.device)
        return self.mean + (self.factor @ noise[..., None])[..., 0]


@dataclass(frozen=True, kw_only=True)
class NetworkPrior:
    """Networks of one shape and what their whitened coordinates z (C, P) stand for."""

    network: Network
    groups: Groups
    priors: ScalePriors
    has_relevances: bool = True

    @cached_property
    def n_relevances(self) -> int:
        return len(self.groups) if self.has_relevances else 0

    @property
    def n_coordinates(self) -> int:
        """Weights, relevances, then log scales: weight, bias, output, noise."""
        return self.network.n_weights + self.n_relevances + N_SCALES

    @cached_property
    def _group_of(self) -> Tensor:
        """(d,), the group of every column."""
        return group_of_columns(self.groups)

    def scales(self, z: Tensor) -> Scales:
        """The scales of the hidden layers."""
        u = z[:, self.network.n_weights :]
        if self.n_relevances:
            relevance = self.priors.relevance(u[:, : self.n_relevances])[:, self._group_of.to(z.device)]
        else:
            relevance = u.new_ones(len(z), self.network.n_inputs)
        u = u[:, self.n_relevances :]
        return Scales(
            self.priors.weight(u[:, 0])[:, None, None],
            self.priors.bias(u[:, 1])[:, None, None],
            relevance[:, :, None],
        )

    def output_scale(self, z: Tensor) -> Tensor:
        """(C,), s_o."""
        return self.priors.output(z[:, -2])

    def feature_scale(self, z: Tensor) -> Tensor:
        """(C,), s_o / sqrt(H), float64: what features are multiplied by in the design."""
        return self.output_scale(z).double() / math.sqrt(self.network.width)

    def noise(self, z: Tensor) -> Tensor:
        """(C,), s_n^2."""
        return NOISE_FLOOR + self.priors.noise(z[:, -1])

    def design(self, z: Tensor, features: Tensor) -> Tensor:
        """Psi (C, n, H + 1), float64, from features (C, n, H)."""
        scaled = features.double() * self.feature_scale(z)[:, None, None]
        return torch.cat([scaled, torch.full_like(scaled[..., :1], OUTPUT_BIAS)], dim=-1)

    def folded(self, z: Tensor, last_layer: Tensor) -> Tensor:
        """A last layer (C, H + 1) with its scales folded in: f = [phi, 1] @ folded, in z's dtype."""
        scaled = last_layer[:, :-1] * self.feature_scale(z)[:, None]
        return torch.cat([scaled, last_layer[:, -1:] * OUTPUT_BIAS], dim=-1).to(z.dtype)

    def given(self, X: Tensor, y: Tensor, variances: Tensor) -> CollapsedPosterior:
        """Their posterior on data: X (n, d) in [-1, 1], y (n,) and known variances (n,)."""
        return CollapsedPosterior(
            network=self.network,
            groups=self.groups,
            priors=self.priors,
            has_relevances=self.has_relevances,
            X=X,
            y=y,
            variances=variances,
        )


@dataclass(frozen=True, kw_only=True)
class CollapsedPosterior(NetworkPrior):
    """log p(z | y) of a batch of networks on one data set.

    X (n, d) in [-1, 1], y (n,) and variances (n,) of the observations, model units; networks are evaluated in
    X's dtype, linear algebra is float64.
    """

    X: Tensor
    y: Tensor
    variances: Tensor

    @cached_property
    def _group_of(self) -> Tensor:
        """(d,), the group of every column, where the data are."""
        return group_of_columns(self.groups).to(self.X.device)

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(z | y) up to a constant (C,), float64, and its gradient (C, P), in z's dtype."""
        phi, pullback = self.network.features_and_pullback(z, self.scales(z), self.X)
        psi = self.design(z, phi)
        noise = self.noise(z).double()
        D = noise[:, None] + self.variances
        likelihood, by_psi, by_D = _gaussian(psi, self.y, D)
        by_phi = by_psi[..., :-1] * self.feature_scale(z)[:, None, None]
        by_weights, by_scales = pullback(by_phi.to(z.dtype))
        n_weights, n_relevances = self.network.n_weights, self.n_relevances
        gradient = -z
        gradient[:, :n_weights] += by_weights
        if n_relevances:
            grouped = z.new_zeros(len(z), n_relevances).index_add_(1, self._group_of, by_scales.relevance)
            gradient[:, n_weights : n_weights + n_relevances] += self.priors.relevance.sd * grouped
        by_output = (by_psi[..., :-1] * psi[..., :-1]).sum((-1, -2))
        gradient[:, -4] += self.priors.weight.sd * by_scales.weight
        gradient[:, -3] += self.priors.bias.sd * by_scales.bias
        gradient[:, -2] += (self.priors.output.sd * by_output).to(z.dtype)
        gradient[:, -1] += (self.priors.noise.sd * (noise - NOISE_FLOOR) * by_D.sum(-1)).to(z.dtype)
        return likelihood - 0.5 * (z * z).sum(-1).double(), gradient

    def last_layer(self, z: Tensor) -> LastLayer:
        """Posterior of [w, c] given hidden weights and scales."""
        return self.last_layer_given(z, self.noise(z).double()[:, None] + self.variances)

    def last_layer_given(self, z: Tensor, D: Tensor) -> LastLayer:
        """Posterior of [w, c] for noise variances D (n,) or (C, n)."""
        psi = self.design(z, self.network.features(z, self.scales(z), self.X))
        weighted = psi / D[..., None]
        A = psi.transpose(-1, -2) @ weighted + torch.eye(psi.shape[-1], dtype=psi.dtype, device=psi.device)
        factor = torch.linalg.cholesky(A)
        mean = torch.cholesky_solve(weighted.transpose(-1, -2) @ self.y[:, None], factor)[..., 0]
        return LastLayer(mean, torch.linalg.inv(factor).transpose(-1, -2))


def _cholesky(A: Tensor) -> tuple[Tensor, Tensor]:
    """The factor of each matrix of a batch, and which of them have one; the identity stands where there is none."""
    factor, info = torch.linalg.cholesky_ex(A)
    is_positive = (info == 0) & torch.isfinite(factor).all((-1, -2))
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    return torch.where(is_positive[:, None, None], factor, identity), is_positive


def _gaussian(psi: Tensor, y: Tensor, D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log N(y | 0, psi psi^T + diag D) (C,), and its derivatives in psi (C, n, k) and in D (C, n).

    By the smaller of the two systems: n x n, or k x k through the Woodbury identity. Not finite where the
    covariance is not positive definite.
    """
    n, k = psi.shape[-2:]
    if n <= k:
        K = psi @ psi.transpose(-1, -2) + torch.diag_embed(D)
        factor, is_positive = _cholesky(K)
        inverse = torch.cholesky_inverse(factor)
        alpha = inverse @ y
        log_determinant = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        by_psi = alpha[..., None] * (alpha[:, None, :] @ psi) - inverse @ psi
        diagonal = inverse.diagonal(dim1=-2, dim2=-1)
    else:
        weighted = psi / D[..., None]
        A = psi.transpose(-1, -2) @ weighted + torch.eye(k, dtype=psi.dtype, device=psi.device)
        factor, is_positive = _cholesky(A)
        solved = torch.cholesky_solve(weighted.transpose(-1, -2), factor).transpose(-1, -2)
        # K^-1 psi = D^-1 psi A^-1, and K^-1 y = D^-1 (y - psi A^-1 psi^T D^-1 y)
        alpha = (y - (psi @ (solved.transpose(-1, -2) @ y)[..., None])[..., 0]) / D
        log_determinant = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + D.log().sum(-1)
        by_psi = alpha[..., None] * (alpha[:, None, :] @ psi) - solved
        diagonal = 1.0 / D - (solved * weighted).sum(-1)
    value = -0.5 * ((alpha * y).sum(-1) + log_determinant + n * math.log(2 * math.pi))
    value = torch.where(is_positive, value, torch.full_like(value, -math.inf))
    return value, by_psi, 0.5 * (alpha.square() - diagonal)
