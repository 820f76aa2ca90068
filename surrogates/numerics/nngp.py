"""Covariance of infinitely wide networks, layer by layer, in the convention of `numerics.networks`.

Lee et al. 2018, "Deep neural networks as Gaussian processes", eq. 4 and 5: with K0 = s_b^2 + s_w^2 <t x, t x'> / d,

    K_l = s_b^2 + s_w^2 E[phi(u) phi(v)],   (u, v) ~ N(0, K_{l-1}),

in closed form for relu (Cho and Saul 2009, eq. 1 and 6) and erf (Williams 1997, eq. 11). For tanh there is none:
erf(sqrt(pi) x / 2), which has its slope at 0 and its limits, stands in for it.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor

from surrogates.numerics.networks import Activation

TANH_AS_ERF: Final = math.pi / 4
"""tanh(x) is about erf(sqrt(c) x) with this c."""


class _ArcCosine(torch.autograd.Function):
    """sin t + (pi - t) cos t at cos t = c; its slope pi - t is finite everywhere, which autograd cannot see."""

    @staticmethod
    def forward(ctx: Any, c: Tensor) -> Tensor:
        angle = torch.acos(c.clamp(-1.0, 1.0))
        ctx.save_for_backward(angle)
        return torch.sin(angle) + (math.pi - angle) * c

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (angle,) = ctx.saved_tensors
        return gradient * (math.pi - angle)


def expected_product(k: Tensor, k_left: Tensor, k_right: Tensor, activation: Activation) -> Tensor:
    """E[phi(u) phi(v)] for covariance k and variances k_left, k_right of (u, v), all broadcastable."""
    if activation == "relu":
        norm = (k_left * k_right).sqrt()
        return norm * _ArcCosine.apply(k / norm) / (2.0 * math.pi)
    c = 2.0 * (TANH_AS_ERF if activation == "tanh" else 1.0)
    sine = c * k / ((1.0 + c * k_left) * (1.0 + c * k_right)).sqrt()
    return (2.0 / math.pi) * torch.asin(sine)


def nngp_covariance(
    left: Tensor,
    right: Tensor | None = None,
    *,
    depth: int,
    activation: Activation,
    weight_variance: Tensor | float,
    bias_variance: Tensor | float,
) -> tuple[Tensor, Tensor, Tensor]:
    """E[phi phi'] of the last hidden layer between rows (..., n, d) and (..., m, d), with both variances.

    Returns (..., n, m), (..., n, 1), (..., 1, m); scale and bias of the output layer are the caller's.
    Relevances are columns of the inputs multiplied beforehand. Without `right`, all pairs of `left`.
    """
    d = left.shape[-1]
    other = left if right is None else right
    k = bias_variance + weight_variance * (left @ other.transpose(-1, -2)) / d
    k_left = bias_variance + weight_variance * left.square().sum(-1, keepdim=True) / d
    k_right = bias_variance + weight_variance * other.square().sum(-1)[..., None, :] / d
    for layer in range(depth):
        products = (
            expected_product(k, k_left, k_right, activation),
            expected_product(k_left, k_left, k_left, activation),
            expected_product(k_right, k_right, k_right, activation),
        )
        if layer == depth - 1:
            return products
        k, k_left, k_right = (bias_variance + weight_variance * product for product in products)
    return k, k_left, k_right
