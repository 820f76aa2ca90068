"""Models that compute on a device and in a precision of their own, asked and answered in those of the points."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.exceptions.errors import UnsupportedError
from botorch.exceptions.warnings import InputDataWarning
from botorch.posteriors import GPyTorchPosterior
from gpytorch.distributions import MultivariateNormal
from linear_operator import to_linear_operator
from torch import Tensor

SINGLE_JITTER: Final = 1e-6
"""Added to the variances of a single precision posterior (model units), beyond what its rounding makes negative."""


@contextmanager
def chosen_precision() -> Iterator[None]:
    """Single precision is the study's choice: BoTorch need not advise against it at every fit."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The model inputs are of type", category=InputDataWarning)
        yield


class Placed:
    """Put before a BoTorch model of one output: `posterior` takes X on any device, in any precision.

    Where the points lie where the model does, nothing is added to what the model itself does.
    """

    def at_home(self, X: Tensor) -> Tensor:
        """X where the model's data lie, and as precise."""
        return X.to(self.train_inputs[0])  # type: ignore[attr-defined]

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,  # noqa: FBT001, FBT002  BoTorch's signature
        posterior_transform: PosteriorTransform | None = None,
        **further: Any,
    ) -> Any:
        """The posterior at X (..., q, d), on X's device and in X's precision. Raises: UnsupportedError."""
        if output_indices not in (None, [0]):
            raise UnsupportedError("there is one output")
        home = self.at_home(X)
        noise = (
            self.at_home(observation_noise) if isinstance(observation_noise, Tensor) else observation_noise
        )
        found = super().posterior(home, observation_noise=noise, **further)  # type: ignore[misc]
        if home.dtype != X.dtype or home.device != X.device:
            found = moved(found, X)
        return found if posterior_transform is None else posterior_transform(found, X=X)


def moved(posterior: GPyTorchPosterior, to: Tensor) -> GPyTorchPosterior:
    """The same distribution on the device and in the precision of `to`; gradients go back the same way."""
    mean = posterior.distribution.mean.to(to)
    covariance = posterior.distribution.covariance_matrix.to(to)
    if posterior.mean.dtype != to.dtype:
        lowest = torch.linalg.eigvalsh(covariance.detach())[..., :1, None]
        covariance = covariance + (SINGLE_JITTER - lowest.clamp_max(0.0)) * torch.eye(
            covariance.shape[-1]
        ).to(to)
    return GPyTorchPosterior(MultivariateNormal(mean, to_linear_operator(covariance)))
