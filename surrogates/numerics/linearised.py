"""The most probable weights of stacked networks by Gauss-Newton steps in function space.

With J = df / dtheta in whitened weights (`numerics.tangent`), the linearised network has its most probable weights at

    theta' = J^T (K + D)^-1 (y - f + J theta),   K = J J^T,

an n x n system for any number of weights. J theta needs no J: f is linear in each layer's weights by itself, so
J theta = f + sum_l <d_l, a_l>.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from surrogates.numerics.collapsed import OUTPUT_BIAS, CollapsedPosterior
from surrogates.numerics.conditioned import positive_factor
from surrogates.numerics.tangent import Tangent, tangent, tangent_covariance

STEP_LENGTHS: Final = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)


@dataclass(frozen=True)
class Weights:
    """All of C networks: hidden weights and scales z (C, P) as in `CollapsedPosterior`, last layers (C, H + 1)."""

    z: Tensor
    last: Tensor

    def chosen(self, rows: Tensor) -> Weights:
        """Some of the networks."""
        return Weights(self.z[rows], self.last[rows])

    def where(self, condition: Tensor, other: Weights) -> Weights:
        """Each network from here where the condition (C,) holds, else from the other."""
        rows = condition[:, None]
        return Weights(torch.where(rows, self.z, other.z), torch.where(rows, self.last, other.last))


def values(target: CollapsedPosterior, weights: Weights, X: Tensor) -> Tensor:
    """The networks' values (C, n) at X (n, d)."""
    matrices = target.network.matrices(weights.z, target.scales(weights.z))
    return target.network.functions(matrices, target.folded(weights.z, weights.last), X)


def log_joint(target: CollapsedPosterior, weights: Weights) -> Tensor:
    """Log p(y | weights) p(weights) under given scales (C,), float64, up to a constant."""
    D = target.noise(weights.z).double()[:, None] + target.variances
    misfit = (target.y - values(target, weights, target.X).double()).square() / D
    hidden = weights.z[:, : target.network.n_weights].double()
    return -0.5 * (misfit.sum(-1) + hidden.square().sum(-1) + weights.last.double().square().sum(-1))


def tangent_at(target: CollapsedPosterior, weights: Weights, X: Tensor) -> Tangent:
    """What J is made of at X (n, d)."""
    matrices = target.network.matrices(weights.z, target.scales(weights.z))
    return tangent(target.network, matrices, target.folded(weights.z, weights.last), X)


def climbed(target: CollapsedPosterior, weights: Weights, *, n_steps: int) -> Weights:
    """More probable weights under the same scales. Raises: FitDiverged."""
    value = log_joint(target, weights)
    for _ in range(n_steps):
        ahead = _newton(target, weights)
        before, moved = value, weights
        for length in STEP_LENGTHS:
            tried = Weights(
                weights.z + length * (ahead.z - weights.z),
                weights.last + length * (ahead.last - weights.last),
            )
            reached = log_joint(target, tried)
            is_better = reached > value
            value, moved = torch.where(is_better, reached, value), tried.where(is_better, moved)
        weights = moved
        if bool((value - before < 1e-6 * (1.0 + before.abs())).all()):
            break
    return weights


def _newton(target: CollapsedPosterior, weights: Weights) -> Weights:
    """The most probable weights of the linearised networks."""
    network, z = target.network, weights.z
    scales, output_scale = target.scales(z), target.output_scale(z)
    matrices = network.matrices(z, scales)
    outputs = target.folded(z, weights.last)
    there = tangent(network, matrices, outputs, target.X)
    f = network.functions(matrices, outputs, target.X).double()
    along = f.clone()
    for h, d, (W, b) in zip(there.inputs, there.slopes, matrices, strict=True):
        along += (d * torch.baddbmm(b, h, W)).sum(-1).double()
    D = target.noise(z).double()[:, None] + target.variances
    factor = positive_factor(tangent_covariance(there, there, scales, output_scale), D)
    v = torch.cholesky_solve((target.y - f + along)[..., None], factor).to(z.dtype)
    parts = []
    for i, (layer, h, d) in enumerate(zip(network.layers, there.inputs, there.slopes, strict=True)):
        scale = scales.weight / math.sqrt(layer.fan_in)
        if i == 0:
            scale = scale * scales.relevance
        parts += [(scale * (h.transpose(-1, -2) @ (v * d))).flatten(1), scales.bias[:, 0] * (v * d).sum(-2)]
    pulled = (there.last.transpose(-1, -2) @ v)[..., 0] * (output_scale / math.sqrt(network.width))[:, None]
    last = torch.cat([pulled, OUTPUT_BIAS * v.sum(-2)], dim=-1)
    return Weights(torch.cat([*parts, z[:, network.n_weights :]], dim=-1), last)
