"""What predictions of each observation from all others tell of a model: error, fit, density and calibration."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Z_90: Final = 1.6448536269514722
"""Half the central 90 % of a standard normal."""


def leave_one_out_figures(y: Array, mean: Array, variance: Array) -> dict[str, Any]:
    """Of observations y (n,) with the mean and variance (n,) of each given all others; nothing from one alone."""
    if len(y) < 2:
        return {}
    residual = y - mean
    spread = float(((y - y.mean()) ** 2).sum())
    log_density = -0.5 * (np.log(2 * np.pi * variance) + residual**2 / variance)
    return {
        "loo_rmse": float(np.sqrt((residual**2).mean())),
        "loo_r2": 1.0 - float((residual**2).sum()) / spread if spread > 0 else None,
        "loo_log_density": float(log_density.mean()),
        "loo_coverage_90": float((np.abs(residual) <= Z_90 * np.sqrt(variance)).mean()),
    }
