"""The loss of anchored networks with the last layer at its minimum, and its gradient.

Bardsley et al. 2014, "Randomize-then-optimize", for the objective; Golub and Pereyra 1973, "The differentiation of
pseudo-inverses and nonlinear least squares problems", for the projection. Network s with features Psi minimises

    sum_i (t_i - Psi_i w)^2 / (2 D_i) + |z - z_s|^2 / 2 + |w - w_s|^2 / 2

over its last layer w in closed form: with r = t - Psi w_s and K = Psi Psi^T + D the minimum is r^T K^-1 r / 2, at
w = w_s + Psi^T a with a = K^-1 r, and its derivative in Psi is -a w^T. For a model linear in z and w, minimisers for
targets t ~ N(y, D) and anchors ~ N(0, I) are exact draws from the posterior.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from surrogates.numerics.collapsed import CollapsedPosterior


@dataclass(frozen=True)
class AnchoredLoss:
    """S networks of one shape; scales stay where their anchors have them."""

    posterior: CollapsedPosterior
    anchors: Tensor
    """(S, P), z_s"""
    output_anchors: Tensor
    """(S, H + 1), w_s, float64"""
    targets: Tensor
    """(S, n), t, float64"""
    D: Tensor
    """(S, n), noise variances: one that is very large hides the observation from the member"""

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (S,), float64, and its gradient (S, P) in z, zero for the scales."""
        target = self.posterior
        phi, pullback = target.network.features_and_pullback(z, target.scales(z), target.X)
        psi = target.design(z, phi)
        last_layer, loss, alpha = self._projected(psi)
        by_phi = -alpha[..., None] * last_layer[:, None, :-1] * target.feature_scale(z)[:, None, None]
        by_weights, _ = pullback(by_phi.to(z.dtype))
        n_weights = target.network.n_weights
        away = (z - self.anchors)[:, :n_weights]
        gradient = torch.zeros_like(z)
        gradient[:, :n_weights] = by_weights + away
        return loss + 0.5 * away.square().sum(-1).double(), gradient

    def last_layer(self, z: Tensor) -> Tensor:
        """The last layers (S, H + 1) that go best with hidden weights z."""
        target = self.posterior
        psi = target.design(z, target.network.features(z, target.scales(z), target.X))
        return self._projected(psi)[0]

    def values(self, z: Tensor) -> Tensor:
        """The networks' values (S, n) at the observations' inputs."""
        target = self.posterior
        psi = target.design(z, target.network.features(z, target.scales(z), target.X))
        return (psi @ self._projected(psi)[0][..., None])[..., 0]

    def _projected(self, psi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Last layers (S, H + 1), losses without the hidden weights' part (S,), and K^-1 r (S, n)."""
        n, k = psi.shape[-2:]
        r = self.targets - (psi @ self.output_anchors[..., None])[..., 0]
        if n <= k:
            factor = torch.linalg.cholesky(psi @ psi.transpose(-1, -2) + torch.diag_embed(self.D))
            alpha = torch.cholesky_solve(r[..., None], factor)[..., 0]
        else:
            weighted = psi.transpose(-1, -2) / self.D[:, None, :]
            A = weighted @ psi + torch.eye(k, dtype=psi.dtype, device=psi.device)
            solved = torch.cholesky_solve(weighted @ r[..., None], torch.linalg.cholesky(A))
            alpha = (r - (psi @ solved)[..., 0]) / self.D
        last_layer = self.output_anchors + (psi.transpose(-1, -2) @ alpha[..., None])[..., 0]
        return last_layer, 0.5 * (r * alpha).sum(-1), alpha


def randomised(
    posterior: CollapsedPosterior, noise: float, n_members: int, generator: torch.Generator
) -> AnchoredLoss:
    """Each of S members gets its own draw from the prior and its own noisy copy of the data; scales at their centre."""
    X, n_weights = posterior.X, posterior.network.n_weights

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(X.device)

    anchors = torch.zeros(n_members, posterior.n_coordinates, dtype=X.dtype, device=X.device)
    anchors[:, :n_weights] = drawn(n_members, n_weights).to(X)
    D = noise + posterior.variances
    return AnchoredLoss(
        posterior,
        anchors,
        drawn(n_members, posterior.network.width + 1),
        posterior.y + D.sqrt() * drawn(n_members, len(D)),
        D.expand(n_members, -1),
    )


def moved(loss: AnchoredLoss, *, n_steps: int, rate: float) -> Iterator[Tensor]:
    """The members' hidden weights (S, P) after 0, 1, ... `n_steps` steps of Adam from their anchors, in one memory."""
    z = loss.anchors.clone().requires_grad_()
    optimiser = torch.optim.Adam([z], lr=rate)
    yield z.detach()
    for _ in range(n_steps):
        with torch.no_grad():
            _, z.grad = loss(z)
        optimiser.step()
        yield z.detach()


def trained(loss: AnchoredLoss, *, n_steps: int, rate: float) -> Tensor:
    """The members' hidden weights (S, P) after the last step."""
    z = loss.anchors
    for z in moved(loss, n_steps=n_steps, rate=rate):  # noqa: B007  the last one counts
        pass
    return z
