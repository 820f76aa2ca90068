"""Surrogates whose posterior is a set of functions: draws of a sampler, members of an ensemble.

An acquisition averages over the members. Each is taken equally often instead of being drawn at random: with 128
draws from 200 members the expected improvement varies by a quarter from seed to seed, enumerated it does not.
Members are functions, so a batch of points is jointly consistent and gradients flow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.exceptions.errors import UnsupportedError
from botorch.models.model import Model
from botorch.posteriors.ensemble import EnsemblePosterior
from botorch.sampling.base import MCSampler
from botorch.sampling.get_sampler import GetSampler
from torch import Tensor

from surrogates.compute import device_of, dtype_of
from surrogates.errors import NotEnoughData
from surrogates.protocol import BuildRequest


class MemberPosterior(EnsemblePosterior):
    """Equally likely functions at the same points: values (..., S, q, m)."""

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        """The members that `base_samples` (shaped like `sample_shape`) names, (*sample_shape, ..., q, m).

        All t-batches take the same members, so that their values can be compared.
        """
        if base_samples.shape != sample_shape:
            raise ValueError(f"base samples {tuple(base_samples.shape)} are not of {tuple(sample_shape)}")
        chosen = self.values.index_select(-3, base_samples.reshape(-1)).movedim(-3, 0)
        return chosen.reshape(self._extended_shape(sample_shape))

    def rsample(self, sample_shape: torch.Size | None = None) -> Tensor:
        """Members in order, again from the first where more are asked for than there are."""
        shape = sample_shape or torch.Size([1])
        indices = torch.arange(shape.numel(), device=self.device) % self.ensemble_size
        return self.rsample_from_base_samples(shape, indices.reshape(shape))


class MemberSampler(MCSampler):
    """Takes every member equally often: `sample_shape` a multiple of S has no Monte Carlo error.

    Repeats come in an order of their own, so that outcomes sampled side by side with different seeds meet in
    different pairs.
    """

    _size: int = 0

    def forward(self, posterior: MemberPosterior) -> Tensor:
        """Samples (*sample_shape, ..., q, m)."""
        n, size = self.sample_shape.numel(), posterior.ensemble_size
        if self.base_samples is None or self._size != size:
            self._size = size
            self.register_buffer("base_samples", _taken(n, size, self.seed).reshape(self.sample_shape))
        if self.base_samples.device != posterior.device:
            self.to(device=posterior.device)
        return posterior.rsample_from_base_samples(self.sample_shape, self.base_samples)

    def _update_base_samples(self, posterior: MemberPosterior, base_sampler: MCSampler) -> None:
        """Members are the same whatever the points: nothing to carry over."""


def _taken(n: int, size: int, seed: int) -> Tensor:
    """Which members make up n samples: all of them, reordered at every round; evenly spaced ones in the last."""
    generator = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(size, generator=generator) for _ in range(n // size)]
    rest = n % size
    return torch.cat([*rounds, torch.arange(rest) * size // max(rest, 1)])


@GetSampler.register(MemberPosterior)  # type: ignore[untyped-decorator]
def _member_sampler(
    posterior: MemberPosterior, sample_shape: torch.Size, *, seed: int | None = None
) -> MCSampler:
    del posterior
    return MemberSampler(sample_shape, seed=seed)


def checked(request: BuildRequest) -> None:
    """Raises: NotEnoughData without a row, ValueError where a number is not finite."""
    checked_data(request.train_X, request.train_Y, request.train_Yvar)


def checked_data(train_X: Tensor, train_Y: Tensor, train_Yvar: Tensor | None) -> None:
    """Raises: NotEnoughData without a row, ValueError where a number is not finite."""
    if len(train_X) == 0:
        raise NotEnoughData("a surrogate needs at least one observation")
    arrays = {"train_X": train_X, "train_Y": train_Y, "train_Yvar": train_Yvar}
    for name, array in arrays.items():
        if array is not None and not torch.isfinite(array).all():
            raise ValueError(f"{name} must be finite")


class OutcomeModel(Model, ABC):
    """One outcome modelled as a function of features in [0, 1].

    Attributes: X (n, d) in [-1, 1], in the model's precision and on its device; y (n,) and variances (n,) of the
    observations in float64, model units.
    """

    _num_outputs: ClassVar[int] = 1

    def __init__(self, request: BuildRequest) -> None:
        checked(request)
        super().__init__()
        self.request = request
        device, dtype = device_of(request.options, request.device), dtype_of(request.options)
        self.train_inputs = (request.train_X,)
        self.train_targets = request.train_Y[:, 0]
        y = request.train_Y[:, 0].double()
        known = torch.zeros_like(y) if request.train_Yvar is None else request.train_Yvar[:, 0].double()
        self.register_buffer("X", centred(request.train_X).to(device, dtype))
        self.register_buffer("y", y.to(device))
        self.register_buffer("variances", known.to(device))
        # a parameter tells where the model computes
        self._place = torch.nn.Parameter(torch.zeros((), dtype=dtype, device=device), requires_grad=False)
        self.rungs: list[str] = []

    @property
    def num_outputs(self) -> int:
        return self._num_outputs

    @property
    def batch_shape(self) -> torch.Size:
        return torch.Size()

    def inputs(self, X: Tensor) -> Tensor:
        """Features (..., d) in [0, 1] as the networks see them: in [-1, 1], the model's precision and device."""
        return centred(X).to(self.X)

    @abstractmethod
    def fit(self, generator: torch.Generator) -> None: ...

    @abstractmethod
    def state(self) -> Mapping[str, Tensor]: ...

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None: ...

    @abstractmethod
    def noise_variance(self) -> Tensor: ...

    def rows(self, X: Tensor) -> Tensor:
        """Points (..., q, d) as rows of network inputs, where and as precisely as the model computes."""
        return self.inputs(X).reshape(-1, X.shape[-1])

    def figures(self) -> dict[str, Any]:
        """What the fit says about itself, as JSON."""
        return {}


class MemberModel(OutcomeModel):
    """One outcome modelled by S functions."""

    @abstractmethod
    def members(self, X: Tensor) -> Tensor:
        """Network inputs (n, d) -> (S, n), model units."""

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,  # noqa: FBT001, FBT002  BoTorch's signature
        posterior_transform: PosteriorTransform | None = None,
    ) -> MemberPosterior:
        """Members at X (..., q, d), on X's device: (..., S, q, 1). Raises: UnsupportedError for observation noise."""
        refuse_noise(observation_noise, output_indices)
        values = self.members(self.rows(X)).to(X)
        values = values.reshape(len(values), *X.shape[:-1]).movedim(0, -2)[..., None]
        if posterior_transform is not None:
            transformed = posterior_transform.evaluate(values)
            values = transformed[..., None] if transformed.ndim < values.ndim else transformed
        return MemberPosterior(values)


def refuse_noise(observation_noise: bool | Tensor, output_indices: list[int] | None) -> None:  # noqa: FBT001
    """Raises: UnsupportedError for what a latent posterior of one output has not."""
    if isinstance(observation_noise, Tensor) or observation_noise:
        raise UnsupportedError("the posterior is latent; noise_variance() tells the noise apart")
    if output_indices not in (None, [0]):
        raise UnsupportedError("there is one output")


def centred(X: Tensor) -> Tensor:
    """Features in [0, 1] as network inputs in [-1, 1]."""
    return 2.0 * X - 1.0
