"""Covariances whose hyperparameters are whitened: every coordinate u ~ N(0, 1) is the log of a scale.

A kernel maps coordinates (k,) and points (..., n, d), (..., m, d) in [0, 1] to K (..., n, m), float64, with
gradients in all of them. Its diagonal is constant: the variance of the function before data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from surrogates.members import centred
from surrogates.numerics.collapsed import LogNormal
from surrogates.numerics.exact_gp import LENGTHSCALE_SD, lengthscale_prior_mean
from surrogates.numerics.matern import matern52, matern52_of, squared_distance
from surrogates.numerics.networks import Activation, Groups, group_of_columns
from surrogates.numerics.nngp import nngp_covariance

WEIGHT_SD: Final = 0.5
BIAS_SD: Final = 0.75
OUTPUT_SD: Final = 1.0
RELEVANCE_SD: Final = 0.75
"""Of a log relevance between two columns."""


class WhitenedKernel(Protocol):
    """What the models of this folder need of a covariance."""

    @property
    def n_coordinates(self) -> int: ...

    def __call__(self, u: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """K (..., n, m), float64."""

    def variance(self, u: Tensor) -> Tensor:
        """(), every entry of the diagonal, float64."""

    def figures(self, u: Tensor) -> dict[str, Any]:
        """The hyperparameters as JSON."""


@dataclass(frozen=True)
class NetworkKernel:
    """An infinitely wide network's covariance with unit diagonal, times an output scale.

    Coordinates: s_w^2, s_b^2, output scale, then with `ard` the relevance of each column group. Points are centred;
    without that, and without the unit diagonal, all points are alike to the kernel.
    """

    groups: Groups
    depth: int
    activation: Activation
    has_relevances: bool
    dtype: torch.dtype = torch.float64

    @cached_property
    def weight(self) -> LogNormal:
        """Prior of s_w^2."""
        return LogNormal(math.log(3.0 if self.activation == "relu" else 6.0), WEIGHT_SD)

    @property
    def bias(self) -> LogNormal:
        """Prior of s_b^2."""
        return LogNormal(0.0, BIAS_SD)

    @property
    def output(self) -> LogNormal:
        """Prior of the output scale: above 1, for what points have in common moves no output."""
        return LogNormal(math.log(6.0), OUTPUT_SD)

    @cached_property
    def relevance(self) -> LogNormal:
        """Prior of a column's relevance: the more columns, the closer together."""
        return LogNormal(0.0, RELEVANCE_SD * (2.0 / max(2, len(self.groups))) ** 0.25)

    @property
    def n_coordinates(self) -> int:
        return 3 + (len(self.groups) if self.has_relevances else 0)

    @cached_property
    def _group_of(self) -> Tensor:
        return group_of_columns(self.groups)

    def __call__(self, u: Tensor, left: Tensor, right: Tensor) -> Tensor:
        v = u.to(self.dtype)
        a, b = centred(left).to(self.dtype), centred(right).to(self.dtype)
        if self.has_relevances:
            relevance = self.relevance(v[3:])[self._group_of.to(v.device)]
            a, b = a * relevance, b * relevance
        k, k_left, k_right = nngp_covariance(
            a,
            b,
            depth=self.depth,
            activation=self.activation,
            weight_variance=self.weight(v[0]),
            bias_variance=self.bias(v[1]),
        )
        return (k / (k_left * k_right).sqrt()).double() * self.variance(u)

    def variance(self, u: Tensor) -> Tensor:
        return self.output(u[2].double())

    def figures(self, u: Tensor) -> dict[str, Any]:
        found: dict[str, Any] = {
            "weight_variance": float(self.weight(u[0])),
            "bias_variance": float(self.bias(u[1])),
            "output_variance": float(self.output(u[2])),
        }
        if self.has_relevances:
            found["relevances"] = self.relevance(u[3:]).tolist()
        return found


@dataclass(frozen=True)
class MaternKernel:
    """Matern-5/2 with unit variance and one lengthscale a column group, priors as in the Gaussian process.

    Coordinates: the lengthscale of each group.
    """

    groups: Groups
    dtype: torch.dtype = torch.float64

    @cached_property
    def lengthscale(self) -> LogNormal:
        """Prior of a lengthscale."""
        return LogNormal(lengthscale_prior_mean(len(self.groups)), LENGTHSCALE_SD)

    @property
    def n_coordinates(self) -> int:
        return len(self.groups)

    @cached_property
    def _group_of(self) -> Tensor:
        return group_of_columns(self.groups)

    def __call__(self, u: Tensor, left: Tensor, right: Tensor) -> Tensor:
        lengthscales = self.lengthscale(u.double())[self._group_of.to(u.device)]
        a, b = ((points.double() / lengthscales).to(self.dtype) for points in (left, right))
        if self.dtype == torch.float64:
            return matern52(squared_distance(a, b))
        # products of matrices would leave nothing of a short distance in single precision
        distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
        return matern52_of(distance).double()

    def variance(self, u: Tensor) -> Tensor:
        return torch.ones((), dtype=torch.float64, device=u.device)

    def figures(self, u: Tensor) -> dict[str, Any]:
        return {"lengthscales": self.lengthscale(u).tolist()}
