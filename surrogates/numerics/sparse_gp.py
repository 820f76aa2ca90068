"""Sparse Gaussian process regression: the collapsed bound on the marginal likelihood and the optimal q(u).

Notation: Z (m, d) inducing inputs, u = f(Z), D = diag(s2 + v) the noise, K_uu = L L^T, A = L^-1 K_uf D^-1/2 (m, n),
B = I + A A^T, r = y - mu. Bound (Titsias 2009, eq. 9, with a noise variance of its own for each observation):

    log N(r | 0, K_fu K_uu^-1 K_uf + D) - 1/2 tr(D^-1 (K_ff - K_fu K_uu^-1 K_uf)).

The q(u) that attains it (eq. 10), whitened by u = mu + L v: v ~ N(B^-1 A D^-1/2 r, B^-1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from surrogates.numerics.matern import matern52, squared_distance


@dataclass(frozen=True, slots=True)
class Collapsed:
    """What the bound and q(u) are made of."""

    A: Tensor
    """(m, n)"""
    B_factor: Tensor
    """(m, m), lower Cholesky factor of B"""
    noise: Tensor
    """(n,), the diagonal of D"""
    residual: Tensor
    """(n,), D^-1/2 r"""

    @classmethod
    def of(
        cls, X: Tensor, Z: Tensor, residual: Tensor, noise: Tensor, lengthscales: Tensor, *, jitter: float
    ) -> Collapsed:
        """X (n, d), Z (m, d), residual (n,), noise (n,), lengthscales (d,). Raises: torch.linalg.LinAlgError."""
        inducing, data = Z / lengthscales, X / lengthscales
        identity = torch.eye(len(Z), dtype=X.dtype, device=X.device)
        K_uu, K_uf = (matern52(squared_distance(inducing, each)) for each in (inducing, data))
        L = torch.linalg.cholesky(K_uu + jitter * identity)
        A = torch.linalg.solve_triangular(L, K_uf, upper=False) / noise.sqrt()
        return cls(A, torch.linalg.cholesky(identity + A @ A.T), noise, residual / noise.sqrt())

    def bound(self) -> Tensor:
        """(), up to the constant n / 2 log(2 pi)."""
        projected = torch.linalg.solve_triangular(
            self.B_factor, (self.A @ self.residual)[:, None], upper=False
        )
        log_determinant = 2.0 * self.B_factor.diagonal().log().sum() + self.noise.log().sum()
        fit = self.residual.square().sum() - projected.square().sum()
        # trace of D^-1 (K_ff - Q_ff): the kernel is 1 on its diagonal
        left_out = (1.0 / self.noise).sum() - self.A.square().sum()
        return -0.5 * (log_determinant + fit + left_out)

    def whitened(self) -> tuple[Tensor, Tensor]:
        """Mean (m,) of v and the lower Cholesky factor (m, m) of its covariance."""
        covariance = torch.cholesky_inverse(self.B_factor)
        mean = torch.cholesky_solve((self.A @ self.residual)[:, None], self.B_factor)[:, 0]
        return mean, torch.linalg.cholesky(0.5 * (covariance + covariance.T))
