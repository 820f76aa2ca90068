"""How good a predictive distribution is: error, log density, CRPS and coverage, for mixtures of normals by formula.

The predictive distribution is the latent posterior widened by the model's noise variance, which counts as at least
1e-6 (model units). A Gaussian posterior gives one normal a point. Members (`values` of BoTorch's EnsemblePosterior,
with its weights) give a mixture: a normal around each, with the noise variance. Gaussians with a dimension of members
(GaussianMixturePosterior) give a mixture of them, and so does what tells its `components()` (`surrogates.mixtures`).
Where a posterior can only be sampled, 256 draws are the members.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, ndtr

Array = NDArray[np.float64]

N_DRAWS: Final = 256
LEAST_NOISE: Final = 1e-6
LEVELS: Final = (0.5, 0.8, 0.95)
PAIR_CHUNK: Final = 64
"""Points whose pairs of members are held in memory at the same time."""


@dataclass(frozen=True, slots=True)
class NormalMixture:
    """A distribution at each of n points: S normals."""

    means: Array
    """(S, n)"""
    sds: Array
    """(S, n), above 0"""
    weights: Array
    """(S,), sum 1"""

    @property
    def mean(self) -> Array:
        """Of the whole (n,)."""
        result: Array = self.weights @ self.means
        return result

    @property
    def variance(self) -> Array:
        """(n,), by the law of total variance."""
        result: Array = self.weights @ (self.sds**2 + (self.means - self.mean) ** 2)
        return result

    def log_density(self, y: Array) -> Array:
        """At y (n,)."""
        z = (y - self.means) / self.sds
        each = -0.5 * z**2 - np.log(self.sds) - 0.5 * np.log(2 * np.pi)
        result: Array = logsumexp(each, axis=0, b=self.weights[:, None])
        return result

    def cdf(self, y: Array) -> Array:
        """At y (n,)."""
        result: Array = self.weights @ ndtr((y - self.means) / self.sds)
        return result

    def crps(self, y: Array) -> Array:
        """Continuous ranked probability score at y (n,): E|F - y| - E|F - F'| / 2.

        Grimit et al. 2006, "The continuous ranked probability score for circular variables and its application to
        mesoscale forecast ensemble verification", eq. 5, with E|N(m, s^2)| in closed form.
        """
        spread = np.empty(len(y))
        for start in range(0, len(y), PAIR_CHUNK):
            part = slice(start, start + PAIR_CHUNK)
            m, s = self.means[:, part], self.sds[:, part]
            pairs = np.hypot(s[:, None, :], s[None, :, :])
            distances = _mean_absolute(m[:, None, :] - m[None, :, :], pairs)
            spread[part] = np.einsum("i,j,ijn->n", self.weights, self.weights, distances)
        result: Array = self.weights @ _mean_absolute(y - self.means, self.sds) - spread / 2
        return result


def _mean_absolute(mean: Array, sd: Array) -> Array:
    """E|N(mean, sd^2)|."""
    z = mean / sd
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    result: Array = mean * (2 * ndtr(z) - 1) + 2 * sd * density
    return result


def predictive(posterior: Any, noise_variance: float, *, seed: int = 0) -> NormalMixture:
    """The distribution of a new observation at each point of a posterior of one outcome over (n, d)."""
    noise = max(noise_variance, LEAST_NOISE)
    weights = None
    if hasattr(posterior, "values"):
        means = _members(posterior.values)
        variances = np.zeros_like(means)
        weights = posterior.weights.detach().cpu().double().numpy()
    elif hasattr(posterior, "components"):
        # equally likely normals: quantiles of a hidden scale, or models
        means, variances = (_members(each) for each in posterior.components())
    elif hasattr(posterior, "mixture_mean"):
        # BoTorch has the dimension of members before that of the points
        means, variances = _members(posterior.mean), _members(posterior.variance)
    elif hasattr(posterior, "distribution"):
        means, variances = _members(posterior.mean[None]), _members(posterior.variance[None])
    else:
        means = _members(_draws(posterior, seed))
        variances = np.zeros_like(means)
    if weights is None:
        weights = np.full(len(means), 1 / len(means))
    return NormalMixture(means, np.sqrt(np.maximum(variances, 0.0) + noise), weights)


def _members(values: Any) -> Array:
    """(S, n) of a tensor (S, n, 1)."""
    found: Array = values.detach().cpu().double().numpy()
    if found.ndim != 3 or found.shape[2] != 1:
        raise ValueError(f"expected members x points x 1 outcome, got {found.shape}")
    return found[..., 0]


def _draws(posterior: Any, seed: int) -> Any:
    import torch

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        return posterior.rsample(torch.Size([N_DRAWS]))


def _within(level: float) -> Callable[[Array], float]:
    tail = (1 - level) / 2
    return lambda places: float(np.mean((places >= tail) & (places <= 1 - tail)))


def scores(distribution: NormalMixture, y: Array) -> dict[str, float]:
    """RMSE, NLL, CRPS, and the share of y (n,) inside the central 50, 80 and 95 %, in the units of y.

    `nll_normal` is the NLL of one normal with the mixture's mean and variance: few members with little noise have
    a density of spikes, which the mixture's own NLL punishes.
    """
    error = y - distribution.mean
    variance = distribution.variance
    normal = 0.5 * np.log(2 * np.pi * variance) + 0.5 * error**2 / variance
    places = distribution.cdf(y)
    found = {
        "rmse": float(np.sqrt(np.mean(error**2))),
        "nll": float(-distribution.log_density(y).mean()),
        "nll_normal": float(normal.mean()),
        "crps": float(distribution.crps(y).mean()),
    }
    return found | {f"coverage_{round(100 * level)}": _within(level)(places) for level in LEVELS}
