"""A posterior that is one of several, each with its probability."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from botorch.posteriors.posterior import Posterior
from botorch.sampling.base import MCSampler
from botorch.sampling.get_sampler import GetSampler, get_sampler
from torch import Tensor


class AveragedPosterior(Posterior):
    """Posteriors of the same points, (..., q, m) each, and the weight of each."""

    def __init__(self, posteriors: Sequence[Posterior], weights: Sequence[float]) -> None:
        if len(posteriors) != len(weights) or not posteriors:
            raise ValueError("as many weights as posteriors, and at least one")
        self.posteriors = tuple(posteriors)
        self.weights = tuple(weights)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        return self.mean.dtype

    @property
    def batch_shape(self) -> torch.Size:
        return self.mean.shape[:-2]

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:  # noqa: B008  BoTorch's signature
        return sample_shape + self.mean.shape

    @property
    def mean(self) -> Tensor:
        """Of all parts, (..., q, m)."""
        return _weighted([p.mean for p in self.posteriors], self.weights)

    @property
    def variance(self) -> Tensor:
        """Within the parts and between their means, (..., q, m)."""
        mean = self.mean
        parts = [p.variance + (p.mean - mean).square() for p in self.posteriors]
        return _weighted(parts, self.weights)

    def rsample(self, sample_shape: torch.Size | None = None) -> Tensor:
        """Samples (*sample_shape, ..., q, m), of every part as many as its weight says."""
        shape = sample_shape or torch.Size([1])
        return AveragedSampler(shape, seed=int(torch.randint(2**31, (1,))))(self)


class AveragedSampler(MCSampler):
    """Samples every part in proportion to its weight, with a sampler made for it.

    Samples stand in an order of the seed's. In that of the parts, two outcomes would come from the same part together,
    and scrambled Sobol points are alike whatever their seed (github.com/meta-pytorch/botorch/issues/2658).
    """

    def forward(self, posterior: AveragedPosterior) -> Tensor:
        """Samples (*sample_shape, ..., q, m)."""
        samples = torch.cat([sampler(part) for sampler, part in self._parts(posterior)])
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(samples), generator=generator).to(samples.device)
        return samples[order].reshape(self.sample_shape + samples.shape[1:])

    def _parts(self, posterior: AveragedPosterior) -> list[tuple[MCSampler, Posterior]]:
        """The parts that are sampled at all, each with its sampler."""
        counts = sample_counts(self.sample_shape.numel(), posterior.weights)
        parts = zip(posterior.posteriors, counts, strict=True)
        return [(self._sampler(i, part, count), part) for i, (part, count) in enumerate(parts) if count]

    def _sampler(self, i: int, part: Posterior, count: int) -> MCSampler:
        name = f"part_{i}"
        if not hasattr(self, name) or getattr(self, name).sample_shape.numel() != count:
            setattr(self, name, get_sampler(part, torch.Size([count]), seed=self.seed + i))
        found: MCSampler = getattr(self, name)
        return found

    def _update_base_samples(self, posterior: AveragedPosterior, base_sampler: AveragedSampler) -> None:
        """Each part goes on from the samples that it drew of the same model at fewer points."""
        mine, theirs = self._parts(posterior), base_sampler._parts(posterior)
        for (sampler, part), (before, _) in zip(mine, theirs, strict=True):
            sampler._update_base_samples(part, before)  # noqa: SLF001  BoTorch's protocol


def sample_counts(n: int, weights: Sequence[float]) -> list[int]:
    """How many of n each gets, in proportion to the weights, by largest remainders."""
    exact = [n * weight / sum(weights) for weight in weights]
    found = [int(part) for part in exact]
    order = sorted(range(len(exact)), key=lambda i: found[i] - exact[i])
    for i in order[: n - sum(found)]:
        found[i] += 1
    return found


def _weighted(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum(0)


@GetSampler.register(AveragedPosterior)  # type: ignore[untyped-decorator]
def _averaged_sampler(
    posterior: AveragedPosterior, sample_shape: torch.Size, *, seed: int | None = None
) -> MCSampler:
    del posterior
    return AveragedSampler(sample_shape, seed=seed)
