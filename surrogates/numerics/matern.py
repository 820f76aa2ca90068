"""The Matern-5/2 correlation in torch, with gradients where points coincide; Rasmussen and Williams 2006, eq. 4.17."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

SQRT5: Final = math.sqrt(5.0)
LEAST_SQUARED_DISTANCE: Final = 1e-20
"""Keeps the slope of a distance finite where points coincide."""


def squared_distance(left: Tensor, right: Tensor) -> Tensor:
    """(..., n, m) between rows (..., n, d) and (..., m, d)."""
    squares = left.square().sum(-1)[..., :, None] + right.square().sum(-1)[..., None, :]
    return squares - 2.0 * left @ right.transpose(-1, -2)


def matern52(squared: Tensor) -> Tensor:
    """Correlation at squared scaled distances."""
    return matern52_of(squared.clamp_min(LEAST_SQUARED_DISTANCE).sqrt())


def matern52_of(distance: Tensor) -> Tensor:
    """Correlation at scaled distances."""
    scaled = SQRT5 * distance
    return (1.0 + scaled + scaled.square() / 3.0) * torch.exp(-scaled)
