"""Hyperparameters of a whitened kernel by maximum a posteriori, and the exact posterior under them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import fmin_l_bfgs_b
from torch import Tensor

from surrogates.bnn.kernels import WhitenedKernel
from surrogates.errors import FitDiverged, NotEnoughData
from surrogates.numerics.collapsed import LogNormal
from surrogates.numerics.conditioned import Conditioned, conditioned
from surrogates.numerics.fit_rows import drawn_rows
from surrogates.numerics.leave_one_out import leave_one_out_figures

MAX_ITERATIONS: Final = 60
BOUND: Final = 8.0
"""Coordinates stay within so many prior standard deviations."""

NOISE_FLOOR: Final = 1e-6
"""Least noise variance: keeps K + D positive definite in double precision."""


class KernelFit:
    """One data set under one kernel: X (n, d) in [0, 1], y (n,), known variances (n,), float64, on one device.

    Coordinates u (k + 1,): the kernel's, then the log of the noise variance s_n^2. Their posterior is maximised:
    log p(y | u) - |u|^2 / 2.
    """

    def __init__(
        self, X: Tensor, y: Tensor, variances: Tensor, *, kernel: WhitenedKernel, noise: LogNormal
    ) -> None:
        self.X, self.y, self.variances = X, y, variances
        self.kernel, self.noise_prior = kernel, noise
        self.u: Tensor | None = None
        self._given: Conditioned | None = None

    @property
    def given(self) -> Conditioned:
        """Raises: NotEnoughData before the fit."""
        if self._given is None:
            raise NotEnoughData("fit the model first")
        return self._given

    @property
    def coordinates(self) -> Tensor:
        """The fitted u (k + 1,). Raises: NotEnoughData before the fit."""
        if self.u is None:
            raise NotEnoughData("fit the model first")
        return self.u

    @property
    def n_coordinates(self) -> int:
        return self.kernel.n_coordinates + 1

    def noise(self, u: Tensor) -> Tensor:
        """(), s_n^2."""
        return NOISE_FLOOR + self.noise_prior(u[-1].double())

    def log_evidence(self, given: Conditioned) -> Tensor:
        """Log p(y | u), up to a constant."""
        return given.log_evidence

    def at(self, u: Tensor, rows: Tensor | slice = slice(None)) -> Conditioned:
        """The posterior under coordinates u from some observations. Raises: FitDiverged."""
        X = self.X[rows]
        return conditioned(self.kernel(u[:-1], X, X), self.noise(u) + self.variances[rows], self.y[rows])

    def objective(self, u: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Negative log posterior of u (), up to a constant. Raises: FitDiverged."""
        given = self.at(u, rows)
        return 0.5 * u.square().sum() - self.log_evidence(given) - given.log_prior_of_constant

    def fit(self, starts: list[Tensor], *, limit: int, generator: torch.Generator) -> None:
        """The best optimum from the starts, on at most `limit` observations, conditioned on all.

        Raises: FitDiverged.
        """
        rows = drawn_rows(self.y, limit, generator)
        found = [self._climbed(start, rows) for start in starts]
        value, u = min(found, key=lambda each: each[0])
        if not np.isfinite(value) or value >= 1e10:
            raise FitDiverged("the marginal likelihood has no finite maximum here")
        self.adopt(u)

    def _climbed(self, start: Tensor, rows: Tensor) -> tuple[float, Tensor]:
        def value_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            with torch.enable_grad():
                u = torch.tensor(flat, device=self.X.device, requires_grad=True)
                try:
                    value = self.objective(u, rows)
                except FitDiverged:
                    return 1e10, np.zeros_like(flat)
                (gradient,) = torch.autograd.grad(value, u)
            return float(value.detach()), gradient.cpu().numpy()

        u, value, _ = fmin_l_bfgs_b(
            value_and_gradient,
            start.cpu().double().clamp(-BOUND, BOUND).numpy(),
            bounds=[(-BOUND, BOUND)] * self.n_coordinates,
            m=10,
            factr=1e9,
            pgtol=1e-3,
            maxiter=MAX_ITERATIONS,
        )
        return float(value), torch.as_tensor(u)

    def adopt(self, u: Tensor) -> None:
        """Condition on all data under coordinates u. Raises: FitDiverged."""
        self.u = u.to(self.X.device, torch.float64)
        with torch.no_grad():
            self._given = self.at(self.u)

    def moments(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (..., q) and covariance (..., q, q) of the latent function at X (..., q, d), float64."""
        u = self.coordinates[:-1]
        # the cross covariance row by row: data are not repeated for every batch
        cross = self.kernel(u, X.reshape(-1, X.shape[-1]), self.X).reshape(*X.shape[:-1], len(self.X))
        own = self.kernel(u, X, X)
        return self.given.mean(cross), self.given.covariance(cross, own)

    def state(self) -> dict[str, Tensor]:
        return {"coordinates": self.coordinates.cpu()}

    def warm_start(self, state: Mapping[str, Tensor] | None) -> Tensor | None:
        """Coordinates of an earlier fit, if it was of such a kernel."""
        found = (state or {}).get("coordinates")
        return found if found is not None and found.shape == (self.n_coordinates,) else None

    def figures(self) -> dict[str, Any]:
        """Hyperparameters, evidence and leave-one-out figures."""
        u = self.coordinates
        found = self.kernel.figures(u[:-1]) | {
            "noise_variance": float(self.noise(u)),
            "log_evidence": float(self.log_evidence(self.given)),
        }
        mean, variance = (each.cpu().numpy() for each in self.given.leave_one_out())
        return found | leave_one_out_figures(self.y.cpu().numpy(), mean, variance)
