"""Analytic log expected improvement with gradients, stable far from the incumbent.

Ament et al. 2023, "Unexpected Improvements to Expected Improvement", eq. 9: log EI = log h(z) + log sigma,
h(z) = phi(z) + z Phi(z), z = (mu - best) / sigma; larger is better.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, log_ndtr

Array = NDArray[np.float64]

LOG_SQRT_2PI: Final = 0.5 * float(np.log(2.0 * np.pi))
LOG_SQRT_PI_2: Final = 0.5 * float(np.log(np.pi / 2.0))
FAR: Final = -1e6
"""Below this z, 1 - |z| sqrt(pi/2) erfcx(|z|/sqrt2) has no digits left and its limit 1/z^2 is used."""


def log_h(z: Array) -> Array:
    """log(phi(z) + z Phi(z)), finite for every finite z."""
    z = np.asarray(z, dtype=np.float64)
    result = np.empty_like(z)
    near = z > -1.0
    zn = z[near]
    density = np.exp(-0.5 * zn**2 - LOG_SQRT_2PI)
    result[near] = np.log(density + zn * np.exp(log_ndtr(zn)))
    far = z <= FAR
    zf = z[far]
    result[far] = -0.5 * zf**2 - LOG_SQRT_2PI - 2.0 * np.log(np.abs(zf))
    middle = ~near & ~far
    zm = z[middle]
    tail = np.log(erfcx(-zm / np.sqrt(2.0)) * np.abs(zm)) + LOG_SQRT_PI_2
    # tail < 0: log(1 - e^tail), without cancellation; its own limit is -2 log|z|
    gap = np.where(tail > -1e-9, 2.0 * np.log(1.0 / np.abs(zm)), np.log(-np.expm1(np.minimum(tail, -1e-300))))
    result[middle] = -0.5 * zm**2 - LOG_SQRT_2PI + gap
    return result


def log_ei(mean: Array, variance: Array, best: float) -> Array:
    """Log EI (q,) from posterior mean and variance (q,) and the incumbent value."""
    sigma = np.sqrt(variance)
    result: Array = log_h((mean - best) / sigma) + np.log(sigma)
    return result


def log_ei_with_gradient(
    mean: Array, variance: Array, mean_gradient: Array, variance_gradient: Array, best: float
) -> tuple[Array, Array]:
    """Log EI (q,) and its gradient (q, d), from the gradients (q, d) of mean and variance."""
    sigma = np.sqrt(variance)
    z = (mean - best) / sigma
    log_improvement = log_h(z)
    # dEI/dmu = Phi(z), dEI/dsigma = phi(z), both over EI = sigma h(z)
    by_mean = np.exp(log_ndtr(z) - log_improvement) / sigma
    by_sigma = np.exp(-0.5 * z**2 - LOG_SQRT_2PI - log_improvement) / sigma
    gradient = by_mean[:, None] * mean_gradient + (by_sigma / (2.0 * sigma))[:, None] * variance_gradient
    return log_improvement + np.log(sigma), gradient
