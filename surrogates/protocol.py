"""The contract of a surrogate plug-in: a light description, and a `build` behind which the heavy imports stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from pydantic import BaseModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from surrogates.encoding import Encoding

DRAWS: Final = "draw."
"""Tensors of a state so named are the posterior's members: needed to give the posterior again, not to start from."""

CostClass = Literal["free", "cheap", "moderate", "expensive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a surrogate can do and wants, declared without loading it."""

    needs_model: bool = True
    """False for a generator that looks at no data."""
    multi_output: bool = False
    gradients: bool = True
    fantasies: bool = False
    categorical_input: bool = True
    queue: Literal["cpu", "gpu", "llm"] = "cpu"
    """What serves its fits: `gpu` runs on a CPU too, slower; `llm` waits for a language model most of the time."""
    cost_class: CostClass = "cheap"
    min_observations: int = 1
    max_sensible_observations: int | None = None
    """Beyond so many the service hands over a part: the neighbourhood of the best, now and then a global sample. None
    means the service's own limit of 1,000. A surrogate that has an option `exact_points` is asked there instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What a surrogate is built from: model units, larger is better."""

    train_X: Tensor
    """(n, d), features of `encoding`."""
    train_Y: Tensor
    """(n, m), standardised."""
    train_Yvar: Tensor | None
    """(n, m), variance of each observation, or None where unknown."""
    encoding: Encoding
    options: BaseModel
    warm: Mapping[str, Tensor] | None = None
    """`state()` of an earlier fit of this outcome."""
    device: str = "cpu"
    """What the worker computes on, by torch's name; data come, and points are asked for, on the CPU."""


class Surrogate(Protocol):
    """A BoTorch model with a fit, a state and its noise kept apart from the latent function."""

    def fit(self, generator: torch.Generator) -> None:
        """Learn from the training data. Raises: FitDiverged, NotEnoughData."""

    def posterior(self, X: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Posterior of the latent function at X (..., q, d)."""

    def state(self) -> Mapping[str, Tensor]:
        """What `load_state` needs to give the same posterior again, under `draw.` what no later fit starts from."""

    def load_state(self, state: Mapping[str, Tensor]) -> None: ...

    def noise_variance(self) -> Tensor:
        """(m,), variance of the observation noise, model units."""

    def parameters(self) -> Iterator[Tensor]:
        """As of any torch module; where they lie is where the model computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A surrogate as the registry knows it."""

    name: str
    summary: str
    options: type[BaseModel]
    abilities: Abilities
    build: Callable[[BuildRequest], Surrogate]
