"""Deep ensemble whose members are anchored: each is drawn to its own draw from the prior and to its own noisy copy of
the data, so that for a linear model the members are exact posterior draws ("randomize then optimize").

Pearce et al. 2020, "Uncertainty in neural networks: approximately Bayesian ensembling", for the anchors; Bardsley et
al. 2014, "Randomize-then-optimize", for the noisy copies. Member s minimises, over hidden weights z and last layer w,

    sum_i (y_i + e_i - f(x_i))^2 / (2 (s_n^2 + v_i)) + |z - z_s|^2 / 2 + |w - w_s|^2 / 2,   e_i ~ N(0, s_n^2 + v_i).

The last layer's minimum is a linear system (variable projection), so Adam moves the hidden weights alone. All members
lie in one tensor. Relevances and noise come from the study's Gaussian process.

Networks are not linear: run to the end, the members agree too much. So the number of steps is chosen first, by a run
in which every member has a quarter of the observations hidden from it and is judged by them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from surrogates.bnn.network_members import NetworkMembers
from surrogates.bnn.options import EnsembleOptions
from surrogates.bnn.priors import relative_relevance, standard_priors, study_gp
from surrogates.errors import FitDiverged
from surrogates.numerics.anchored import AnchoredLoss
from surrogates.numerics.collapsed import NOISE_FLOOR, CollapsedPosterior
from surrogates.numerics.networks import Scales
from surrogates.protocol import BuildRequest

N_FOLDS: Final = 4
HIDDEN: Final = 1e8
"""Factor on the noise variance of an observation that a member must not see."""

CHECK_EVERY: Final = 10
PATIENCE: Final = 5
"""Checks without improvement after which more steps are not tried."""

MIN_TO_FOLD: Final = 8
"""With fewer observations nothing is hidden, and the members take a quarter of the steps allowed."""


class AnchoredEnsemble(NetworkMembers):
    """One outcome; see EnsembleOptions."""

    def __init__(self, request: BuildRequest) -> None:
        super().__init__(request)
        assert isinstance(request.options, EnsembleOptions)
        self.options = request.options

    def fit(self, generator: torch.Generator) -> None:
        """Draw anchors and noisy copies of the data, choose the number of steps, move all members at once.

        Raises: FitDiverged.
        """
        gp = study_gp(self.request, generator)
        if self.options.relevance == "gp":
            self._relevance = relative_relevance(gp)
        noise = max(gp.core.noise, NOISE_FLOOR)
        posterior = self._posterior()
        loss = self._randomised(posterior, noise, generator)
        n_steps = self._chosen_steps(loss, generator)
        z = loss.anchors
        for z, _ in self._moved(loss, n_steps):  # noqa: B007  the last one counts
            pass
        if not torch.isfinite(z).all():
            raise FitDiverged("the members are not finite")
        self._report |= {"n_steps": n_steps, "loss": float(loss(z)[0].mean())}
        self.load_state(
            {
                "draw.positions": z,
                "draw.outputs": posterior.folded(z, loss.last_layer(z)),
                "relevance": self._relevance,
                "noise": torch.tensor([noise], dtype=torch.float64),
            }
        )

    def _posterior(self) -> CollapsedPosterior:
        return CollapsedPosterior(
            self.network,
            self.inputs(self.request.train_X),
            self.y,
            self.variances,
            self.request.encoding.groups,
            standard_priors(self.request),
            has_relevances=False,
        )

    def _randomised(
        self, posterior: CollapsedPosterior, noise: float, generator: torch.Generator
    ) -> AnchoredLoss:
        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.X.device)

        n_members = self.options.n_members
        anchors = torch.zeros(n_members, posterior.n_coordinates, dtype=self.X.dtype, device=self.X.device)
        anchors[:, : self.network.n_weights] = drawn(n_members, self.network.n_weights).to(self.X)
        D = noise + self.variances
        return AnchoredLoss(
            posterior,
            anchors,
            drawn(n_members, self.network.width + 1),
            self.y + D.sqrt() * drawn(n_members, len(self.y)),
            D.expand(n_members, -1),
        )

    def _chosen_steps(self, loss: AnchoredLoss, generator: torch.Generator) -> int:
        """After how many steps observations hidden from a member are most likely under those that did not see them."""
        n, n_members = len(self.y), self.options.n_members
        if n < MIN_TO_FOLD:
            return self.options.max_steps // 4
        fold = (torch.randperm(n, generator=generator) % N_FOLDS).to(self.X.device)
        is_hidden = fold == (torch.arange(n_members, device=self.X.device) % N_FOLDS)[:, None]
        blind = replace(loss, D=torch.where(is_hidden, HIDDEN * loss.D, loss.D))
        best, n_best, n_worse = -math.inf, 0, 0
        for z, step in self._moved(blind, self.options.max_steps):
            if step % CHECK_EVERY:
                continue
            found = _hidden_likelihood(blind.values(z), self.y, loss.D[0], is_hidden)
            n_worse = 0 if found > best else n_worse + 1
            best, n_best = max((best, n_best), (found, step))
            if n_worse == PATIENCE:
                break
        self._report = {"hidden_log_density": best}
        return n_best

    def _moved(self, loss: AnchoredLoss, n_steps: int) -> Iterator[tuple[Tensor, int]]:
        """The members' hidden weights after 0, 1, ... `n_steps` steps of Adam from their anchors."""
        z = loss.anchors.clone().requires_grad_()
        optimiser = torch.optim.Adam([z], lr=self.options.learning_rate)
        yield z.detach(), 0
        for step in range(1, n_steps + 1):
            with torch.no_grad():
                _, z.grad = loss(z)
            optimiser.step()
            yield z.detach(), step

    def _scales(self, z: Tensor) -> Scales:
        return self._posterior().scales(z)


def _hidden_likelihood(values: Tensor, y: Tensor, D: Tensor, is_hidden: Tensor) -> float:
    """Mean log density of observations (n,) under the members (S, n) that did not see them, as normals."""
    weights = is_hidden / is_hidden.sum(0)
    mean = (weights * values).sum(0)
    # unbiased over the few members that a point is hidden from
    n = is_hidden.sum(0)
    variance = (weights * (values - mean).square()).sum(0) * (n + 1) / (n - 1) + D
    return float((-0.5 * (2 * math.pi * variance).log() - 0.5 * (y - mean).square() / variance).mean())
