"""Exact Gaussian process regression in NumPy: closed-form marginal likelihood, gradient and MAP fit.

Notation: X (n, d) features, y (n,) model units, K = k(X, X) + diag(s2 + v), l_g the lengthscale of column
group g, s2 the learned noise variance, v known noise variances. Kernel: Matern-5/2, one lengthscale a group,
unit output scale (Rasmussen and Williams 2006, eq. 4.17; gradients from eq. 5.9). The constant mean is the
generalised least squares one under a N(0, 1/LAMBDA) prior.

Many groups: independent priors on 200 lengthscales of 0.8 say together that no two points have anything to do with
each other, and 200 observations cannot move them one by one. There the lengthscales move together (`SharedPrior`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack
from scipy.optimize import fmin_l_bfgs_b

from surrogates.errors import FitDiverged

Array = NDArray[np.float64]
Groups = tuple[tuple[int, ...], ...]

LAMBDA: Final = 1e-4
SQRT5: Final = float(np.sqrt(5.0))
LENGTHSCALE_BOUNDS: Final = (0.005, 1e3)
LENGTHSCALE_SD: Final = 1.2
NOISE_FLOOR: Final = 1e-6
NOISE_CEILING: Final = 2.0
MAX_ITERATIONS: Final = 60
MANY_GROUPS: Final = 10
"""More column groups than these have the shared prior, a long start and the distances of `_ManyGroups`."""
SHARED_SD: Final = 1.0
SHARED_SHIFT_SD: Final = 1.0
SHARED_DEGREES: Final = 0.3
"""Degrees of freedom of the shared prior, as a share of the number of groups."""
LONG_START_NOISE: Final = -3.0
"""log s2 of the long start: nearly constant functions without noise would send the first step back to short ones."""
JITTERS: Final = (0.0, 1e-8, 1e-6, 1e-4)


@dataclass(frozen=True, slots=True)
class NoisePrior:
    """log s2 ~ N(mean, sd^2)."""

    mean: float
    sd: float


LOW_NOISE: Final = NoisePrior(-7.0, 2.0)
STRONG_NOISE: Final = NoisePrior(-4.0, 1.0)


def lengthscale_prior_mean(n_groups: int) -> float:
    """Mean of log l: grows slowly with the number of dimensions."""
    return -1.6 + 0.25 * float(np.log(max(n_groups, 1)))


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """log lengthscales (g,) by group and log noise variance."""

    log_lengthscales: Array
    log_noise: float

    @classmethod
    def at_prior(cls, n_groups: int, prior: NoisePrior) -> Hyperparameters:
        """The prior's mean: where a fit starts without a warm start."""
        return cls(np.full(n_groups, lengthscale_prior_mean(n_groups)), prior.mean)

    @classmethod
    def long(cls, n_groups: int) -> Hyperparameters:
        """Lengthscales of sqrt(g), the distance of random points up to a constant: everything hangs together."""
        return cls(np.full(n_groups, 0.5 * float(np.log(n_groups))), LONG_START_NOISE)

    def flat(self) -> Array:
        return np.r_[self.log_lengthscales, self.log_noise]

    @classmethod
    def from_flat(cls, theta: Array) -> Hyperparameters:
        return cls(np.asarray(theta[:-1], dtype=np.float64).copy(), float(theta[-1]))


def column_groups(groups: Sequence[Sequence[int]]) -> NDArray[np.intp]:
    """(d,), the position of every column's group."""
    found = np.empty(sum(len(group) for group in groups), dtype=np.intp)
    for position, group in enumerate(groups):
        found[list(group)] = position
    return found


def column_lengthscales(hyperparameters: Hyperparameters, groups: Groups) -> Array:
    """The lengthscale of every column, (d,)."""
    lengthscales: Array = np.exp(hyperparameters.log_lengthscales)[column_groups(groups)]
    return lengthscales


def _scaled_distance(left: Array, right: Array) -> Array:
    """Euclidean distances (n, m) of rows already divided by their lengthscales."""
    squared = (left**2).sum(1)[:, None] + (right**2).sum(1)[None, :] - 2.0 * left @ right.T
    distance: Array = np.sqrt(np.maximum(squared, 0.0))
    return distance


def matern52(distance: Array) -> tuple[Array, Array]:
    """K and F = (5/3)(1 + sqrt5 r) exp(-sqrt5 r), with which dk/dx = -F (x - x') / l^2; both like `distance`."""
    scaled = SQRT5 * distance
    decay = np.exp(-scaled)
    return (1.0 + scaled + scaled**2 / 3.0) * decay, (5.0 / 3.0) * (1.0 + scaled) * decay


def _inverse(K: Array) -> tuple[Array, float] | None:
    """K^-1 and log |K| by Cholesky (dpotrf, dpotri); None where K is not positive definite."""
    factor, info = lapack.dpotrf(K, lower=1, clean=1)
    if info != 0:
        return None
    log_determinant = 2.0 * float(np.log(np.diag(factor)).sum())
    inverse, info = lapack.dpotri(factor, lower=1)
    if info != 0:
        return None
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    return inverse, log_determinant


class IndependentPrior:
    """log l_g ~ N(mean, LENGTHSCALE_SD^2), each on its own: the measured recipe for few groups."""

    def __init__(self, n_groups: int) -> None:
        self.mean = lengthscale_prior_mean(n_groups)

    def __call__(self, log_lengthscales: Array) -> tuple[float, Array]:
        """-2 log density and half its gradient (g,)."""
        z = (log_lengthscales - self.mean) / LENGTHSCALE_SD
        return float(z @ z), z / LENGTHSCALE_SD


class SharedPrior:
    """log l ~ multivariate t with mean mu, scale S = a^2 I + b^2 1 1^T and nu = 0.3 g degrees of freedom.

    b lets all lengthscales shift together at the price of one. The t says that how far they lie apart is learned,
    too: near each other where all inputs matter alike, far apart where few do. S^-1 by Sherman and Morrison.
    """

    def __init__(self, n_groups: int) -> None:
        self.mean = lengthscale_prior_mean(n_groups)
        self.degrees = SHARED_DEGREES * n_groups
        self._pull = SHARED_SHIFT_SD**2 / (SHARED_SD**2 + n_groups * SHARED_SHIFT_SD**2)

    def __call__(self, log_lengthscales: Array) -> tuple[float, Array]:
        """-2 log density and half its gradient (g,)."""
        z = log_lengthscales - self.mean
        solved = (z - self._pull * z.sum()) / SHARED_SD**2
        quadratic = float(z @ solved)
        power = self.degrees + len(z)
        return power * float(np.log1p(quadratic / self.degrees)), power / (self.degrees + quadratic) * solved


class _FewGroups:
    """Squared differences of every pair, kept by group: (g, n^2) numbers, exact for close points."""

    def __init__(self, X: Array, groups: Groups) -> None:
        self._n = len(X)
        self._squared = np.stack(
            [((X[:, None, list(g)] - X[None, :, list(g)]) ** 2).sum(-1) for g in groups]
        ).reshape(len(groups), -1)

    def distance(self, inverse_square: Array) -> Array:
        distance: Array = np.sqrt(inverse_square @ self._squared).reshape(self._n, self._n)
        return distance

    def gradient(self, inverse_square: Array, weights: Array) -> Array:
        """0.5 sum_ij w_ij (x_i - x_j)^2 / l^2 by group, (g,)."""
        result: Array = 0.5 * inverse_square * (self._squared @ weights.ravel())
        return result


class _ManyGroups:
    """The same through products of matrices, O(n^2 d) and no more memory than (n, n) and (n, d)."""

    def __init__(self, X: Array, groups: Groups) -> None:
        self._X = X - 0.5
        self._group_of = np.empty(X.shape[1], dtype=np.intp)
        for number, group in enumerate(groups):
            self._group_of[list(group)] = number
        self._n_groups = len(groups)

    def distance(self, inverse_square: Array) -> Array:
        scaled = self._X * np.sqrt(inverse_square)[self._group_of]
        distance = _scaled_distance(scaled, scaled)
        np.fill_diagonal(distance, 0.0)
        return distance

    def gradient(self, inverse_square: Array, weights: Array) -> Array:
        """As of _FewGroups; weights symmetric."""
        by_column = weights.sum(axis=1) @ self._X**2 - np.einsum("nd,nd->d", self._X, weights @ self._X)
        return inverse_square * np.bincount(self._group_of, by_column, minlength=self._n_groups)


class Likelihood:
    """Negative log posterior of the hyperparameters on one data set, with its gradient."""

    def __init__(self, X: Array, y: Array, variances: Array, groups: Groups, prior: NoisePrior) -> None:
        self.y, self.variances, self.groups, self.prior = y, variances, groups, prior
        self.has_many = len(groups) > MANY_GROUPS
        self._pairs = _ManyGroups(X, groups) if self.has_many else _FewGroups(X, groups)
        self._lengthscale_prior = (SharedPrior if self.has_many else IndependentPrior)(len(groups))

    def __call__(self, theta: Array, jitter: float = 0.0) -> tuple[float, Array]:
        """Value and gradient (g + 1,) at (log l_1 .. log l_g, log s2)."""
        inverse_square = np.exp(-2.0 * theta[:-1])
        noise = float(np.exp(theta[-1]))
        k, F = matern52(self._pairs.distance(inverse_square))
        solved = _inverse(k + np.diag(noise + self.variances + jitter))
        if solved is None:
            return 1e10, np.zeros_like(theta)
        inverse, log_determinant = solved
        ones = inverse.sum(axis=1)
        mean = float(ones @ self.y) / (float(ones.sum()) + LAMBDA)
        residual = self.y - mean
        alpha = inverse @ residual
        value = 0.5 * (float(residual @ alpha) + LAMBDA * mean**2 + log_determinant)
        W = inverse - np.outer(alpha, alpha)
        # the mean is optimal, so its own derivative vanishes
        gradient = np.empty_like(theta)
        gradient[:-1] = self._pairs.gradient(inverse_square, W * F)
        gradient[-1] = 0.5 * noise * float(np.trace(W))
        penalty, pull = self._lengthscale_prior(theta[:-1])
        z_s = (theta[-1] - self.prior.mean) / self.prior.sd
        value += 0.5 * (penalty + z_s**2)
        gradient[:-1] += pull
        gradient[-1] += z_s / self.prior.sd
        return value, gradient


def fit_map(likelihood: Likelihood, start: Hyperparameters, *, jitter: float = 0.0) -> Hyperparameters:
    """Maximum a posteriori hyperparameters by L-BFGS-B from `start`, for many groups from long lengthscales, too.

    Raises: FitDiverged.
    """
    starts = [start]
    if likelihood.has_many:
        # where nothing was learned yet, short lengthscales have no gradient that leads out of them
        starts.append(Hyperparameters.long(len(likelihood.groups)))
    ends = [_climb(likelihood, s.flat(), jitter) for s in starts]
    usable = [(theta, value) for theta, value in ends if _is_usable(theta, value)]
    if not usable:
        raise FitDiverged("the marginal likelihood has no finite maximum here")
    return Hyperparameters.from_flat(min(usable, key=lambda end: end[1])[0])


def _is_usable(theta: Array, value: float) -> bool:
    return bool(np.isfinite(value) and value < 1e10 and np.all(np.isfinite(theta)))


def _climb(likelihood: Likelihood, theta: Array, jitter: float) -> tuple[Array, float]:
    low, high = np.log(LENGTHSCALE_BOUNDS[0]), np.log(LENGTHSCALE_BOUNDS[1])
    bounds = [(low, high)] * len(likelihood.groups) + [(np.log(NOISE_FLOOR), np.log(NOISE_CEILING))]
    found, value, _ = fmin_l_bfgs_b(
        likelihood,
        np.clip(theta, [b[0] for b in bounds], [b[1] for b in bounds]),
        args=(jitter,),
        bounds=bounds,
        m=10,
        factr=1e10,
        pgtol=1e-3,
        maxiter=MAX_ITERATIONS,
    )
    return np.asarray(found), float(value)


@dataclass(frozen=True, slots=True)
class Posterior:
    """A Gaussian process conditioned on data, ready for predictions with gradients."""

    X: Array
    """(n, d)"""
    y: Array
    hyperparameters: Hyperparameters
    lengthscales: Array
    """(d,)"""
    mean: float
    inverse: Array
    """(n, n), K^-1"""
    alpha: Array
    """(n,), K^-1 (y - mean)"""

    @property
    def noise(self) -> float:
        """Learned noise variance, model units."""
        return float(np.exp(self.hyperparameters.log_noise))

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and variance of the latent function, each (q,), at x (q, d)."""
        k, _ = matern52(_scaled_distance(x / self.lengthscales, self.X / self.lengthscales))
        mean = self.mean + k @ self.alpha
        variance = 1.0 - np.einsum("qn,qn->q", k @ self.inverse, k)
        return mean, np.maximum(variance, 1e-12)

    def predict_with_gradients(self, x: Array) -> tuple[Array, Array, Array, Array]:
        """Mean (q,), variance (q,) and their gradients in x, each (q, d)."""
        scaled, data = x / self.lengthscales, self.X / self.lengthscales
        k, F = matern52(_scaled_distance(scaled, data))
        solved = k @ self.inverse
        mean = self.mean + k @ self.alpha
        variance = np.maximum(1.0 - np.einsum("qn,qn->q", solved, k), 1e-12)

        def weighted(weights: Array) -> Array:
            # sum_i w_i dk_i/dx with dk_i/dx = -F_i (x - x_i) / l^2
            moved = weights @ data - scaled * weights.sum(axis=1, keepdims=True)
            result: Array = moved / self.lengthscales
            return result

        return mean, variance, weighted(F * self.alpha), -2.0 * weighted(F * solved)

    def leave_one_out(self) -> tuple[Array, Array]:
        """Mean and variance of each observation given all others, each (n,); Rasmussen and Williams eq. 5.12."""
        diagonal = np.diag(self.inverse)
        return self.y - self.alpha / diagonal, 1.0 / diagonal


def condition(
    X: Array, y: Array, hyperparameters: Hyperparameters, groups: Groups, variances: Array | None = None
) -> Posterior:
    """The posterior under given hyperparameters, with more jitter where K needs it. Raises: FitDiverged."""
    lengthscales = column_lengthscales(hyperparameters, groups)
    data = X / lengthscales
    k, _ = matern52(_scaled_distance(data, data))
    np.fill_diagonal(k, 1.0)
    diagonal = np.exp(hyperparameters.log_noise) + (np.zeros(len(y)) if variances is None else variances)
    for jitter in JITTERS:
        solved = _inverse(k + np.diag(diagonal + jitter))
        if solved is not None:
            inverse, _ = solved
            ones = inverse.sum(axis=1)
            mean = float(ones @ y) / (float(ones.sum()) + LAMBDA)
            alpha = inverse @ (y - mean)
            if np.all(np.isfinite(alpha)):
                return Posterior(X, y, hyperparameters, lengthscales, mean, inverse, alpha)
    raise FitDiverged("the covariance of the data is not positive definite")
