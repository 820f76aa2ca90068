"""Posteriors that are Gaussian given one hidden number which all points of a batch share.

A draw takes a standard normal for the hidden number and then one for each point: 1 + q base samples. They are Sobol's
for one outcome; for several, BoTorch has each outcome draw independent ones, as Sobol points of two samplers are alike.
The hidden number moves all points together, so a batch is jointly consistent; t-batches share base samples. It stands
first because BoTorch's noisy acquisitions keep the first base samples when points are added to a baseline.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Final

import torch
from botorch.acquisition.objective import PosteriorTransform, ScalarizedPosteriorTransform
from botorch.exceptions.errors import UnsupportedError
from botorch.posteriors.posterior import Posterior
from botorch.sampling.base import MCSampler
from botorch.sampling.get_sampler import GetSampler
from botorch.sampling.normal import SobolQMCNormalSampler
from linear_operator.utils.cholesky import psd_safe_cholesky
from scipy.special import gammaincinv
from torch import Tensor

N_SCALES: Final = 64
"""Quantiles of the hidden scale that stand for a Student-t distribution as a mixture of normals."""


class HiddenPosterior(Posterior):
    """Means (..., R, q) and covariances (..., R, q, q) of R Gaussians, mixed by a hidden number."""

    def __init__(self, means: Tensor, covariances: Tensor) -> None:
        self.means = means
        self.covariances = covariances

    @property
    def device(self) -> torch.device:
        return self.means.device

    @property
    def dtype(self) -> torch.dtype:
        return self.means.dtype

    @property
    def batch_shape(self) -> torch.Size:
        return self.means.shape[:-2]

    @property
    def _n_points(self) -> int:
        return self.means.shape[-1]

    @property
    def base_sample_shape(self) -> torch.Size:
        """One base sample for the hidden number, then one for each point."""
        return torch.Size([*self.batch_shape, self._n_points + 1, 1])

    @property
    def batch_range(self) -> tuple[int, int]:
        return (0, -2)

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:  # noqa: B008
        return torch.Size([*sample_shape, *self.batch_shape, self._n_points, 1])

    def rsample(self, sample_shape: torch.Size | None = None) -> Tensor:
        shape = sample_shape or torch.Size([1])
        ones = [1] * len(self.batch_shape)
        base = torch.randn(*shape, *ones, self._n_points + 1, 1, dtype=self.dtype, device=self.device)
        return self.rsample_from_base_samples(shape, base)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        """(*sample_shape, ..., q, 1) from normals (*sample_shape, ..., 1 + q, 1)."""
        if base_samples.shape[: len(sample_shape)] != sample_shape:
            raise ValueError(f"base samples {tuple(base_samples.shape)} are not of {tuple(sample_shape)}")
        base = base_samples
        for axis in range(len(sample_shape), base.ndim - 2):
            # samplers repeat one draw for all t-batches: the hidden number is worked out once
            base = base.narrow(axis, 0, 1) if base.stride(axis) == 0 and base.shape[axis] > 1 else base
        hidden = torch.special.ndtr(base[..., 0, 0].double())
        samples = self._drawn(base[..., 1:, 0], hidden)
        return samples.expand(*sample_shape, *self.batch_shape, self._n_points)[..., None]

    def _deviations(self, z: Tensor, component: int) -> Tensor:
        """Correlated deviations (S..., ..., q) of one Gaussian from normals like them."""
        root = psd_safe_cholesky(self.covariances[..., component, :, :])
        return (root @ z[..., None])[..., 0]

    @abstractmethod
    def _drawn(self, z: Tensor, hidden: Tensor) -> Tensor:
        """Samples (S..., ..., q) from normals z like them and hidden numbers (S..., ...) uniform on (0, 1)."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """(..., q, 1)."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """(..., q, 1)."""

    @abstractmethod
    def components(self) -> tuple[Tensor, Tensor]:
        """Means and variances (S, ..., q, 1) of equally likely normals that make up the marginals."""

    @abstractmethod
    def affine(self, weight: Tensor, offset: float) -> HiddenPosterior:
        """The posterior of offset + weight f."""

    def transformed(self, transform: PosteriorTransform | None) -> HiddenPosterior:
        """Under Ax's or BoTorch's transform. Raises: UnsupportedError for one that is not affine."""
        if transform is None:
            return self
        if not isinstance(transform, ScalarizedPosteriorTransform):
            raise UnsupportedError(f"{type(transform).__name__} is no affine transform of one outcome")
        return self.affine(transform.weights.to(self.means)[0], float(transform.offset))


class StudentTPosterior(HiddenPosterior):
    """Multivariate t: location (..., q), scale matrix (..., q, q), degrees of freedom above 2."""

    def __init__(self, location: Tensor, scale: Tensor, degrees: float) -> None:
        super().__init__(location[..., None, :], scale[..., None, :, :])
        self.degrees = degrees

    @property
    def mean(self) -> Tensor:
        return self.means[..., 0, :, None]

    @property
    def variance(self) -> Tensor:
        scale = self.covariances[..., 0, :, :].diagonal(dim1=-2, dim2=-1).clamp_min(0.0)
        return scale[..., None] * (self.degrees / (self.degrees - 2.0))

    def _spread(self, hidden: Tensor) -> Tensor:
        """By how much the scale matrix is widened: nu / chi2_nu(hidden)."""
        quantiles = gammaincinv(self.degrees / 2.0, hidden.detach().cpu().numpy())
        return torch.as_tensor(self.degrees / (2.0 * quantiles)).to(self.means)

    def _drawn(self, z: Tensor, hidden: Tensor) -> Tensor:
        return self.means[..., 0, :] + self._spread(hidden).sqrt()[..., None] * self._deviations(z, 0)

    def components(self) -> tuple[Tensor, Tensor]:
        hidden = (torch.arange(N_SCALES, dtype=torch.float64) + 0.5) / N_SCALES
        scale = self.covariances[..., 0, :, :].diagonal(dim1=-2, dim2=-1).clamp_min(0.0)[..., None]
        spread = self._spread(hidden).reshape(-1, *[1] * scale.ndim)
        return self.mean.expand(N_SCALES, *self.mean.shape), spread * scale

    def affine(self, weight: Tensor, offset: float) -> StudentTPosterior:
        means, scales = self.means[..., 0, :], self.covariances[..., 0, :, :]
        return StudentTPosterior(offset + weight * means, weight.square() * scales, self.degrees)


class GaussianMixture(HiddenPosterior):
    """Equally likely Gaussians; the hidden number says which."""

    @property
    def _n_components(self) -> int:
        return self.means.shape[-2]

    @property
    def mean(self) -> Tensor:
        return self.means.mean(-2)[..., None]

    @property
    def variance(self) -> Tensor:
        """By the law of total variance."""
        within = self.covariances.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).mean(-2)
        return (within + self.means.var(-2, correction=0))[..., None]

    def _drawn(self, z: Tensor, hidden: Tensor) -> Tensor:
        n = self._n_components
        chosen = (hidden * n).long().clamp_max(n - 1)
        samples = z.new_zeros(())
        for component in range(n):
            drawn = self.means[..., component, :] + self._deviations(z, component)
            samples = torch.where((chosen == component)[..., None], drawn, samples)
        return samples

    def components(self) -> tuple[Tensor, Tensor]:
        variances = self.covariances.diagonal(dim1=-2, dim2=-1).clamp_min(0.0)
        return self.means.movedim(-2, 0)[..., None], variances.movedim(-2, 0)[..., None]

    def affine(self, weight: Tensor, offset: float) -> GaussianMixture:
        return GaussianMixture(offset + weight * self.means, weight.square() * self.covariances)


@GetSampler.register(HiddenPosterior)  # type: ignore[untyped-decorator]
def _hidden_sampler(
    posterior: HiddenPosterior, sample_shape: torch.Size, *, seed: int | None = None
) -> MCSampler:
    del posterior
    return SobolQMCNormalSampler(sample_shape=sample_shape, seed=seed)
