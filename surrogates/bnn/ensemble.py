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
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from surrogates.bnn.network_members import AnchoredMembers
from surrogates.bnn.options import EnsembleOptions
from surrogates.errors import FitDiverged
from surrogates.numerics.anchored import AnchoredLoss, moved, randomised, trained
from surrogates.numerics.ascent import HELD_OUT_VARIANCE, held_out
from surrogates.numerics.collapsed import NOISE_FLOOR
from surrogates.protocol import BuildRequest

CHECK_EVERY: Final = 10
PATIENCE: Final = 5
"""Checks without improvement after which more steps are not tried."""

UNCHOSEN_SHARE: Final = 0.25
"""Part of the steps allowed that members take where observations are too few to hide any."""


class AnchoredEnsemble(AnchoredMembers):
    """One outcome; see EnsembleOptions."""

    def __init__(self, request: BuildRequest) -> None:
        super().__init__(request)
        assert isinstance(request.options, EnsembleOptions)
        self.options = request.options

    def fit(self, generator: torch.Generator) -> None:
        """Draw anchors and noisy copies of the data, choose the number of steps, move all members at once.

        Raises: FitDiverged.
        """
        self._set_noise_and_relevance(generator, least_noise=NOISE_FLOOR)
        loss = randomised(self.collapsed(), self._noise, self.options.n_members, generator)
        n_steps = self._chosen_steps(loss, generator)
        z = trained(loss, n_steps=n_steps, rate=self.options.learning_rate)
        if not torch.isfinite(z).all():
            raise FitDiverged("the members are not finite")
        self._report |= {"n_steps": n_steps, "loss": float(loss(z)[0].mean())}
        self._adopt(z, self.prior.folded(z, loss.last_layer(z)))

    def _chosen_steps(self, loss: AnchoredLoss, generator: torch.Generator) -> int:
        """After how many steps observations hidden from a member are most likely under those that did not see them."""
        options = self.options
        is_hidden = held_out(options.n_members, len(self.y), generator).to(self.X.device)
        if not bool(is_hidden.any()):
            return int(options.max_steps * UNCHOSEN_SHARE)
        blind = replace(loss, D=torch.where(is_hidden, HELD_OUT_VARIANCE, loss.D))
        best, n_best, n_worse = -math.inf, 0, 0
        for step, z in enumerate(moved(blind, n_steps=options.max_steps, rate=options.learning_rate)):
            if step % CHECK_EVERY:
                continue
            found = _hidden_likelihood(blind.values(z), self.y, loss.D[0], is_hidden)
            n_worse = 0 if found > best else n_worse + 1
            best, n_best = max((best, n_best), (found, step))
            if n_worse == PATIENCE:
                break
        self._report = {"hidden_log_density": best}
        return n_best


def _hidden_likelihood(values: Tensor, y: Tensor, D: Tensor, is_hidden: Tensor) -> float:
    """Mean log density of observations (n,) under the members (S, n) that did not see them, as normals."""
    weights = is_hidden / is_hidden.sum(0)
    mean = (weights * values).sum(0)
    # unbiased over the few members that a point is hidden from
    n = is_hidden.sum(0)
    variance = (weights * (values - mean).square()).sum(0) * (n + 1) / (n - 1) + D
    return float((-0.5 * (2 * math.pi * variance).log() - 0.5 * (y - mean).square() / variance).mean())
