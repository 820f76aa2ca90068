"""Many fully connected networks of one shape, evaluated together: the networks lie in the batch dimension.

Notation: C networks, n points, d inputs in [-1, 1], L hidden layers of width H. The coordinates z (C, P) are
whitened: z ~ N(0, I) is the prior. Layer l has weights W_l = s_w z / sqrt(fan in) and biases b_l = s_b z, so that
the prior of the function does not depend on the width (Neal 1996, section 2.1). The first layer's rows carry
a relevance t_g for each column group besides (Neal 1996, section 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import torch
from torch import Tensor

from surrogates.numerics.exact_gp import column_groups

Activation = Literal["tanh", "erf", "relu"]
Groups = Sequence[Sequence[int]]

TWO_OVER_SQRT_PI: Final = 2.0 / math.sqrt(math.pi)


def group_of_columns(groups: Groups) -> Tensor:
    """(d,), the position of every column's group."""
    return torch.as_tensor(column_groups(groups))


@dataclass(frozen=True, slots=True)
class Layer:
    """Where a layer's weights (fan_in x fan_out) and biases lie in z."""

    weights: slice
    biases: slice
    fan_in: int
    fan_out: int


@dataclass(frozen=True)
class Scales:
    """What turns whitened coordinates into weights, for each network."""

    weight: Tensor
    """(C, 1, 1), s_w"""
    bias: Tensor
    """(C, 1, 1), s_b"""
    relevance: Tensor
    """(C, d, 1), t of each input column"""


@dataclass(frozen=True)
class ScaleGradients:
    """Derivatives with respect to the logarithms of the scales."""

    weight: Tensor
    """(C,)"""
    bias: Tensor
    """(C,)"""
    relevance: Tensor
    """(C, d)"""


@dataclass(frozen=True)
class ForwardPass:
    """What a pass through the layers leaves behind, input side first."""

    inputs: list[Tensor]
    """of each layer, (C, n, fan in)"""
    slopes: list[Tensor]
    """of each layer's activation, (C, n, H)"""
    last: Tensor
    """the last hidden layer (C, n, H)"""


@dataclass(frozen=True)
class Network:
    """The shape shared by all networks; d inputs, `depth` hidden layers of `width`, no output layer."""

    n_inputs: int
    width: int
    depth: int
    activation: Activation

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The hidden layers, input side first."""
        found: list[Layer] = []
        start, fan_in = 0, self.n_inputs
        for _ in range(self.depth):
            middle = start + fan_in * self.width
            end = middle + self.width
            found.append(Layer(slice(start, middle), slice(middle, end), fan_in, self.width))
            start, fan_in = end, self.width
        return tuple(found)

    @property
    def n_weights(self) -> int:
        """P: whitened coordinates of one network."""
        return self.layers[-1].biases.stop

    def matrices(self, z: Tensor, scales: Scales) -> list[tuple[Tensor, Tensor]]:
        """For each layer W (C, fan_in, fan_out) and b (C, 1, fan_out)."""
        found = []
        for i, layer in enumerate(self.layers):
            W = z[:, layer.weights].reshape(-1, layer.fan_in, layer.fan_out)
            W = W * (scales.weight / math.sqrt(layer.fan_in))
            if i == 0:
                W = W * scales.relevance
            found.append((W, z[:, None, layer.biases] * scales.bias))
        return found

    def features(self, z: Tensor, scales: Scales, X: Tensor) -> Tensor:
        """The last hidden layer (C, n, H) at X (n, d) or (C, n, d)."""
        return self.through(self.matrices(z, scales), X)

    def through(self, matrices: Sequence[tuple[Tensor, Tensor]], X: Tensor) -> Tensor:
        """The last hidden layer (C, n, H) under ready weights."""
        h = X.expand(len(matrices[0][0]), *X.shape[-2:])
        for W, b in matrices:
            h = self._activated(torch.baddbmm(b, h, W))
        return h

    def functions(self, matrices: Sequence[tuple[Tensor, Tensor]], outputs: Tensor, X: Tensor) -> Tensor:
        """The networks' values (C, n) at X; outputs (C, H + 1) are weights and bias of their last layers."""
        h = self.through(matrices, X)
        return torch.baddbmm(outputs[:, -1:, None], h, outputs[:, :-1, None])[..., 0]

    def features_and_pullback(
        self, z: Tensor, scales: Scales, X: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ScaleGradients]]]:
        """The last hidden layer, and what turns its cotangent (C, n, H) into gradients of z and of the log scales.

        Written out by hand: a third of autograd's time where networks are small.
        """
        matrices = self.matrices(z, scales)
        forward = self.layers_and_slopes(matrices, X)
        inputs, slopes = forward.inputs, forward.slopes

        def pullback(cotangent: Tensor) -> tuple[Tensor, ScaleGradients]:
            gradient = z.new_empty(len(z), self.n_weights)
            by_weight = z.new_zeros(len(z))
            by_bias = z.new_zeros(len(z))
            by_relevance = z.new_zeros(len(z), self.n_inputs)
            for i in reversed(range(self.depth)):
                layer, (W, b) = self.layers[i], matrices[i]
                cotangent = cotangent * slopes[i]
                dW = inputs[i].transpose(-1, -2) @ cotangent
                db = cotangent.sum(-2)
                by_row = (dW * W).sum(-1)
                by_weight = by_weight + by_row.sum(-1)
                by_bias = by_bias + (db * b[:, 0]).sum(-1)
                scale = scales.weight / math.sqrt(layer.fan_in)
                if i == 0:
                    by_relevance = by_row
                    scale = scale * scales.relevance
                else:
                    cotangent = cotangent @ W.transpose(-1, -2)
                gradient[:, layer.weights] = (dW * scale).reshape(len(z), -1)
                gradient[:, layer.biases] = db * scales.bias[:, 0]
            return gradient, ScaleGradients(by_weight, by_bias, by_relevance)

        return forward.last, pullback

    def layers_and_slopes(self, matrices: Sequence[tuple[Tensor, Tensor]], X: Tensor) -> ForwardPass:
        """Every layer under ready weights at X (n, d)."""
        inputs: list[Tensor] = []
        slopes: list[Tensor] = []
        h = X.expand(len(matrices[0][0]), *X.shape[-2:])
        for W, b in matrices:
            inputs.append(h)
            a = torch.baddbmm(b, h, W)
            h = self._activated(a)
            slopes.append(self._slope(a, h))
        return ForwardPass(inputs, slopes, h)

    def _activated(self, a: Tensor) -> Tensor:
        if self.activation == "tanh":
            return torch.tanh(a)
        return torch.erf(a) if self.activation == "erf" else torch.relu(a)

    def _slope(self, a: Tensor, h: Tensor) -> Tensor:
        if self.activation == "tanh":
            return 1.0 - h * h
        return TWO_OVER_SQRT_PI * torch.exp(-a * a) if self.activation == "erf" else (a > 0).to(a)
