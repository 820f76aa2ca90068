"""Exact Gaussian process algebra in torch: evidence with gradients, and the posterior under a given covariance.

Notation: K (n, n) covariance of the latent function, D (n,) noise variances, y (n,), all float64. The constant mean
is the generalised least squares one under a N(0, 1/LAMBDA) prior, as in `numerics.exact_gp`
(Rasmussen and Williams 2006, eq. 2.25, 2.26 and 2.42).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from surrogates.errors import FitDiverged
from surrogates.numerics.exact_gp import LAMBDA

JITTERS: Final = (0.0, 1e-8, 1e-6, 1e-4)


@dataclass(frozen=True)
class Conditioned:
    """A Gaussian process given data; batch dimensions of K and D go in front of everything."""

    factor: Tensor
    """(..., n, n), lower Cholesky factor L of K + diag D"""
    inverse_factor: Tensor
    """(..., n, n), L^-1"""
    constant: Tensor
    """(...), the mean before data"""
    alpha: Tensor
    """(..., n), (K + D)^-1 (y - constant)"""
    residual: Tensor
    """(..., n), y - constant"""

    def mean(self, cross: Tensor) -> Tensor:
        """Posterior mean (..., q) from the covariance (..., q, n) of points with the data."""
        return self.constant[..., None] + (cross @ self.alpha[..., None])[..., 0]

    def covariance(self, cross: Tensor, own: Tensor) -> Tensor:
        """Posterior covariance (..., q, q) of points with covariance `own` among themselves."""
        half = cross @ self.inverse_factor.transpose(-1, -2)
        return own - half @ half.transpose(-1, -2)

    @property
    def quadratic(self) -> Tensor:
        """(...), (y - constant)^T (K + D)^-1 (y - constant)."""
        return (self.residual * self.alpha).sum(-1)

    @property
    def log_determinant(self) -> Tensor:
        """(...), log |K + D|."""
        return 2.0 * self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    @property
    def log_evidence(self) -> Tensor:
        """(...), log N(y | constant, K + D)."""
        n = self.alpha.shape[-1]
        return -0.5 * (self.quadratic + self.log_determinant + n * math.log(2 * math.pi))

    @property
    def log_prior_of_constant(self) -> Tensor:
        """(...), up to a constant."""
        return -0.5 * LAMBDA * self.constant.square()

    def leave_one_out(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each observation given all others, (..., n); Rasmussen and Williams eq. 5.12."""
        diagonal = self.inverse_factor.square().sum(-2)
        return self.residual + self.constant[..., None] - self.alpha / diagonal, 1.0 / diagonal


def positive_factor(K: Tensor, D: Tensor) -> Tensor:
    """Lower Cholesky factor of K + diag D, with more jitter where it needs some. Raises: FitDiverged."""
    for jitter in JITTERS:
        factor, info = torch.linalg.cholesky_ex(K + torch.diag_embed(D + jitter))
        if not bool(info.any()) and bool(torch.isfinite(factor).all()):
            return factor
    raise FitDiverged("the covariance of the data is not positive definite")


def conditioned(K: Tensor, D: Tensor, y: Tensor) -> Conditioned:
    """Given y (n,) with noise variances D. Raises: FitDiverged."""
    factor = positive_factor(K, D)
    identity = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device).expand_as(factor)
    inverse_factor = torch.linalg.solve_triangular(factor, identity, upper=False)
    ones = inverse_factor.sum(-1)
    half = (inverse_factor @ y[..., None])[..., 0]
    constant = (ones * half).sum(-1) / (ones.square().sum(-1) + LAMBDA)
    alpha = (inverse_factor.transpose(-1, -2) @ (half - constant[..., None] * ones)[..., None])[..., 0]
    if not bool(torch.isfinite(alpha).all()):
        raise FitDiverged("the data have no finite posterior under this covariance")
    return Conditioned(factor, inverse_factor, constant, alpha, y - constant[..., None])
