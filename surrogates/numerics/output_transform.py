"""Outputs to model units: z-score, maximum likelihood Yeo-Johnson, z-score again; and predictions back.

Yeo and Johnson 2000, "A new family of power transformations to improve normality or symmetry".
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import inv_boxcox1p
from scipy.stats import yeojohnson

Array = NDArray[np.float64]

MIN_FOR_POWER: Final = 4
"""Fewer values say nothing about their skewness."""

POWERS: Final = (0.0, 2.0)
"""Within these the transform reaches every number, so every number has an inverse."""


@dataclass(frozen=True, slots=True)
class OutputTransform:
    """t = (T((y - shift) / scale) - shift2) / scale2 with T the Yeo-Johnson power, or the identity."""

    shift: float
    scale: float
    power: float | None
    shift2: float
    scale2: float

    def __call__(self, y: Array) -> Array:
        """User values (n,) in model units."""
        z = _safe_difference(y, self.shift) / self.scale
        t = z if self.power is None else yeojohnson(z, lmbda=self.power)
        result: Array = (np.asarray(t) - self.shift2) / self.scale2
        return result

    def inverse(self, t: Array) -> Array:
        """Model units back to user values."""
        result: Array = self._standardised(t) * self.scale + self.shift
        return result

    def _standardised(self, t: Array) -> Array:
        """Model units back to z-scores."""
        z = t * self.scale2 + self.shift2
        return z if self.power is None else _inverse_power(z, self.power)

    def variances(self, sem: Array, y: Array) -> Array:
        """Known noise variances in model units (n,), by the slope of the transform at each value."""
        result: Array = (sem * self._slope(y)) ** 2
        return result

    def _slope(self, y: Array) -> Array:
        """Slope dt / dy at user values, above 0: T'(z) = (1 + |z|)^(power - 1) for z >= 0, ^(1 - power) below."""
        z = _safe_difference(y, self.shift) / self.scale
        exponent = 0.0 if self.power is None else self.power - 1.0
        slope: Array = (1.0 + np.abs(z)) ** (np.where(z < 0, -1.0, 1.0) * exponent)
        return slope / (self.scale * self.scale2)

    def predicted(self, mean: Array, sd: Array) -> tuple[Array, Array]:
        """Median, and half the width of the central 68 %, in user units, of a normal in model units.

        Where the transform is linear these are the mean and the standard deviation. Elsewhere the moments may not
        even exist, while quantiles pass through any monotone map.
        """
        low, middle, high = (self.inverse(mean + step * sd) for step in (-1.0, 0.0, 1.0))
        return middle, (high - low) / 2


def fit_output_transform(y: Array, *, with_power: bool = True) -> OutputTransform:
    """The transform that makes these values (n,) most nearly standard normal; falls back to a z-score."""
    shift, scale = _moments(y)
    z = _safe_difference(y, shift) / scale
    if not with_power or len(y) < MIN_FOR_POWER or np.ptp(z) < 1e-9:
        return OutputTransform(shift, scale, None, 0.0, 1.0)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        _, power = yeojohnson(z)
        # beyond these powers the transform ends at a pole, and nothing past it has an inverse
        power = float(np.clip(power, *POWERS))
        transformed = yeojohnson(z, lmbda=power)
    shift2, scale2 = _moments(np.asarray(transformed))
    fine = np.isfinite(power) and np.all(np.isfinite(transformed)) and scale2 > 1e-6
    if not fine:
        return OutputTransform(shift, scale, None, 0.0, 1.0)
    return OutputTransform(shift, scale, power, shift2, scale2)


def _moments(y: Array) -> tuple[float, float]:
    """Mean and standard deviation; 1 for the latter where the values do not differ."""
    largest = float(np.abs(y).max(initial=0.0))
    if largest == 0.0:
        return 0.0, 1.0
    # scaled first: squares of 1e200 overflow, those of 1e-200 vanish
    scaled = y / largest
    mean, sd = float(scaled.mean()), float(scaled.std(ddof=1)) if len(y) > 1 else 0.0
    return mean * largest, (sd * largest if sd > 1e-12 else largest)


def _safe_difference(y: Array, shift: float) -> Array:
    result: Array = np.clip(y - shift, -1e300, 1e300)
    return result


def _inverse_power(t: Array, power: float) -> Array:
    """Z with Yeo-Johnson(z) = t, for powers in [0, 2]."""
    z = np.empty_like(t)
    positive = t >= 0
    with np.errstate(all="ignore"):
        z[positive] = inv_boxcox1p(t[positive], power)
        z[~positive] = -inv_boxcox1p(-t[~positive], 2.0 - power)
    return z
