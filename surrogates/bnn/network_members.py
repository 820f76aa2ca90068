"""Surrogates whose members are finite networks of one shape: what sampled and trained ones share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from surrogates.bnn.options import RelevanceOptions
from surrogates.bnn.priors import network_prior, relative_relevance, study_gp
from surrogates.errors import NotEnoughData
from surrogates.members import MemberModel
from surrogates.numerics.collapsed import CollapsedPosterior
from surrogates.protocol import BuildRequest


class NetworkMembers(MemberModel):
    """One outcome; a fit ends by `load_state` of what it found.

    The state holds `relevance` (d,) of the inputs, `draw.positions` (S, P) and `draw.outputs` (S, H + 1) of the
    members, and what `noise_variance` needs besides.
    """

    def __init__(self, request: BuildRequest) -> None:
        super().__init__(request)
        self.prior = network_prior(request, has_relevances=False)
        self.network = self.prior.network
        self._relevance = torch.ones(self.X.shape[-1], dtype=torch.float64)
        self._report: dict[str, Any] = {}
        self._state: dict[str, Tensor] = {}

    def inputs(self, X: Tensor) -> Tensor:
        return super().inputs(X) * self._relevance.to(self.X)

    def collapsed(self, rows: Tensor | slice = slice(None)) -> CollapsedPosterior:
        """The networks' posterior on some observations, under the present relevances."""
        return self.prior.given(self.inputs(self.request.train_X[rows]), self.y[rows], self.variances[rows])

    def members(self, X: Tensor) -> Tensor:
        """Raises: NotEnoughData before the fit."""
        self.state()
        return self.network.functions(self._matrices, self._outputs, X)

    def state(self) -> dict[str, Tensor]:
        """On the CPU. Raises: NotEnoughData before the fit."""
        if not self._state:
            raise NotEnoughData("fit the model first")
        return self._state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._state = {name: tensor.cpu() for name, tensor in state.items()}
        self._relevance = self._state["relevance"]
        z = state["draw.positions"].to(self.X)
        self._matrices = self.network.matrices(z, self.prior.scales(z))
        self._outputs = state["draw.outputs"].to(self.X)

    def figures(self) -> dict[str, Any]:
        return self._report | {"noise_variance": float(self.noise_variance())}


class AnchoredMembers(NetworkMembers):
    """Members whose noise variance and relevances are those of the study's Gaussian process.

    Neither is a start for a later fit: every fit asks the Gaussian process of its own data. The state holds `noise`
    (1,) besides.
    """

    def _set_noise_and_relevance(
        self, generator: torch.Generator, *, least_noise: float, rows: Tensor | slice = slice(None)
    ) -> None:
        """From some observations. Raises: FitDiverged."""
        request = self.request
        assert isinstance(request.options, RelevanceOptions)
        known = request.train_Yvar
        part = replace(
            request,
            train_X=request.train_X[rows],
            train_Y=request.train_Y[rows],
            train_Yvar=None if known is None else known[rows],
        )
        gp = study_gp(part, generator)
        if request.options.relevance == "gp":
            self._relevance = relative_relevance(gp)
        self._noise = max(gp.core.noise, least_noise)

    def _adopt(self, z: Tensor, outputs: Tensor) -> None:
        """Members at z (S, P) with last layers (S, H + 1), their scales folded in."""
        self.load_state(
            {
                "draw.positions": z,
                "draw.outputs": outputs,
                "relevance": self._relevance,
                "noise": torch.tensor([self._noise], dtype=torch.float64),
            }
        )

    def noise_variance(self) -> Tensor:
        """(1,), the noise variance of the study's Gaussian process; known variances come on top."""
        return self.state()["noise"]
