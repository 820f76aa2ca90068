"""Surrogates whose members are finite networks of one shape: what sampled and trained ones share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from surrogates.bnn.options import RelevanceOptions
from surrogates.errors import NotEnoughData
from surrogates.members import MemberModel
from surrogates.numerics.networks import Network, Scales
from surrogates.protocol import BuildRequest


class NetworkMembers(MemberModel):
    """One outcome; a fit ends by `load_state` of what it found.

    The state holds `relevance` (d,) of the inputs, `draw.positions` (S, P) and `draw.outputs` (S, H + 1) of the
    members, and unless `noise_variance` is another's, `noise` (1,).
    """

    def __init__(self, request: BuildRequest) -> None:
        super().__init__(request)
        options = request.options
        assert isinstance(options, RelevanceOptions)
        self.network = Network(self.X.shape[-1], options.width, options.depth, options.activation)
        self._relevance = torch.ones(self.X.shape[-1], dtype=torch.float64)
        self._report: dict[str, Any] = {}
        self._state: dict[str, Tensor] = {}

    @abstractmethod
    def _scales(self, z: Tensor) -> Scales:
        """The scales of the members' hidden layers."""

    def inputs(self, X: Tensor) -> Tensor:
        return super().inputs(X) * self._relevance.to(self.X)

    def members(self, X: Tensor) -> Tensor:
        """Raises: NotEnoughData before the fit."""
        if not self._state:
            raise NotEnoughData("fit the model first")
        return self.network.functions(self._matrices, self._outputs, X)

    def state(self) -> dict[str, Tensor]:
        return self._state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._state = dict(state)
        self._relevance = state["relevance"]
        z = state["draw.positions"].to(self.X)
        self._matrices = self.network.matrices(z, self._scales(z))
        self._outputs = state["draw.outputs"].to(self.X)

    def noise_variance(self) -> Tensor:
        """(1,), the noise variance of the study's Gaussian process."""
        return self._state["noise"]

    def figures(self) -> dict[str, Any]:
        return self._report
