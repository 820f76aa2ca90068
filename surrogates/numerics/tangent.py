"""How the value of a network moves with its weights: the covariance J J^T of a linearised network, layer by layer.

With h_l the layers, a_l what enters their activations and d_l = df / da_l, the derivatives of f in whitened weights
of layer l are s_w h_{l-1} d_l^T / sqrt(fan in), those in whitened biases s_b d_l, so

    J(x) J(x')^T = sum_l (s_w^2 <h_{l-1}, h_{l-1}'> / fan in + s_b^2) <d_l, d_l'>  +  s_o^2 <h_L, h_L'> / H + s_c^2

(Jacot et al. 2018, "Neural tangent kernel", for the form). J itself, n x P, is never made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from surrogates.numerics.collapsed import OUTPUT_BIAS
from surrogates.numerics.networks import Network, Scales


@dataclass(frozen=True)
class Tangent:
    """What J is made of at some points, for C networks."""

    inputs: tuple[Tensor, ...]
    """h_{l-1}, each (C, n, fan in); the first are the points, before relevances"""
    slopes: tuple[Tensor, ...]
    """d_l, each (C, n, H)"""
    last: Tensor
    """h_L (C, n, H)"""

    def reshaped(self, *shape: int) -> Tangent:
        """The rows of one network in batches: (..., q, .)."""
        return Tangent(
            tuple(h.reshape(*shape, h.shape[-1]) for h in self.inputs),
            tuple(d.reshape(*shape, d.shape[-1]) for d in self.slopes),
            self.last.reshape(*shape, self.last.shape[-1]),
        )


def tangent(
    network: Network, matrices: Sequence[tuple[Tensor, Tensor]], outputs: Tensor, X: Tensor
) -> Tangent:
    """At X (n, d), for networks with these hidden layers and last layers `outputs` (C, H + 1), scales folded in."""
    layers = network.layers_and_slopes(matrices, X)
    gradient = outputs[:, None, :-1]
    slopes: list[Tensor] = []
    for i in reversed(range(network.depth)):
        slopes.insert(0, gradient * layers.slopes[i])
        gradient = slopes[0] @ matrices[i][0].transpose(-1, -2)
    return Tangent(tuple(layers.inputs), tuple(slopes), layers.last)


def tangent_covariance(left: Tangent, right: Tangent, scales: Scales, output_scale: Tensor) -> Tensor:
    """J J'^T (..., n, m), float64; `output_scale` (C,) is s_o."""
    output = output_scale[:, None, None].square()
    total = output * (left.last @ right.last.transpose(-1, -2)) / left.last.shape[-1] + OUTPUT_BIAS**2
    for i, (h, other) in enumerate(zip(left.inputs, right.inputs, strict=True)):
        relevant = h * scales.relevance.transpose(-1, -2).square() if i == 0 else h
        products = scales.weight.square() * (relevant @ other.transpose(-1, -2)) / h.shape[-1]
        through = left.slopes[i] @ right.slopes[i].transpose(-1, -2)
        total = total + (products + scales.bias.square()) * through
    return total.double()
