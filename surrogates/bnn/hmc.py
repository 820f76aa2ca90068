"""Bayesian neural network by Metropolis-corrected Hamiltonian Monte Carlo, judged by the functions it draws.

Hidden weights and all scales (weights, biases, relevances, output, noise) are sampled in whitened coordinates with
the last layer integrated out (`numerics.collapsed`); each draw then gets a last layer from its exact conditional.
Several chains lie in one tensor. A fit that after three times the draws fails split R-hat or effective sample size of
the function at 32 points, or whose transitions are refused or diverge too often, is rejected: the study's Gaussian
process answers in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from surrogates.bnn.network_members import NetworkMembers
from surrogates.bnn.options import HmcOptions
from surrogates.bnn.priors import (
    functional_priors,
    functional_values,
    relative_relevance,
    standard_priors,
    study_gp,
)
from surrogates.errors import FitRejected
from surrogates.numerics.collapsed import LogNormal, ScalePriors
from surrogates.numerics.convergence import effective_sample_size, split_r_hat
from surrogates.numerics.hmc import Chains, Transition, transitions, warmed_up
from surrogates.numerics.networks import group_of_columns
from surrogates.protocol import BuildRequest

N_POINTS: Final = 32
MIN_SAMPLE_SIZE: Final = 100.0
MIN_ACCEPTANCE: Final = 0.6
"""Mean acceptance of a sound fit; one above 0.95 is no fault, only time."""

MAX_DIVERGENT: Final = 0.02
"""Share of divergent transitions, beyond which a part of the posterior may be out of reach; good fits have 0.01."""

MAX_BLOCKS: Final = 3
FIRST_STEP: Final = 0.05
WARM_SHARE: Final = 1 / 3
"""Part of the warm-up that a warm start still goes through."""


@dataclass(slots=True)
class _Draws:
    """What sampling has gathered: one entry a transition."""

    positions: list[Tensor]
    """each (C, P)"""
    outputs: list[Tensor]
    """each (C, H + 1), last layers with their scales folded in"""
    values: list[Tensor]
    """each (C, 32), the functions at the points that judge convergence"""
    acceptance: float = 0.0
    n_divergent: int = 0

    def figures(self) -> dict[str, Any]:
        """How well the chains have mixed, as JSON."""
        values = torch.stack(self.values, dim=1)
        return {
            "r_hat": float(split_r_hat(values).max()),
            "effective_sample_size": float(effective_sample_size(values).min()),
            "n_draws": values.shape[0] * values.shape[1],
            "acceptance": self.acceptance / len(self.values),
            "n_divergent": self.n_divergent,
        }


class HmcNetwork(NetworkMembers):
    """One outcome; see HmcOptions."""

    def __init__(self, request: BuildRequest) -> None:
        super().__init__(request)
        assert isinstance(request.options, HmcOptions)
        self.options = request.options
        self.prior = replace(self.prior, has_relevances=self.options.relevance == "sampled")
        self._set_target(self.prior.priors, self._relevance)

    def _set_target(self, priors: ScalePriors, relevance: Tensor) -> None:
        """What is sampled: networks under these priors, inputs multiplied by a relevance each (d,)."""
        self.prior, self._relevance = replace(self.prior, priors=priors), relevance
        self.target = self.collapsed()

    def fit(self, generator: torch.Generator) -> None:
        """Warm up, sample, judge, and keep the members. Raises: FitRejected."""
        self._set_target(*self._priors_and_relevance(generator))
        chains, step, n_warmup = self._start(generator)
        chains, step = warmed_up(chains, self.target, step=step, n=n_warmup, generator=generator)
        points = self._points(generator)
        draws = _Draws([], [], [])
        for block in range(MAX_BLOCKS):
            for made in transitions(
                chains, self.target, step=step, n=self.options.n_draws, generator=generator
            ):
                self._keep(made, points, draws, generator)
                chains = made.chains
            self._report = draws.figures() | {"step": step, "n_warmup": n_warmup}
            verdict = doubt(self._report, self.options)
            if verdict is None:
                break
            self.rungs.append(f"block {block + 1}: {verdict}")
        else:
            raise FitRejected(f"the chains cannot be trusted: {verdict}")
        self._adopt(draws, chains, step)

    def _priors_and_relevance(self, generator: torch.Generator) -> tuple[ScalePriors, Tensor]:
        standard = standard_priors(self.request)
        if self.options.prior == "standard" and self.options.relevance != "gp":
            return standard, torch.ones(self.X.shape[-1], dtype=torch.float64)
        gp = study_gp(self.request, generator)
        if self.options.prior == "standard":
            return standard, relative_relevance(gp)
        values = functional_values(self.request, gp, generator)
        columns = group_of_columns(self.request.encoding.groups)
        return functional_priors(self.request, values), values.relevance[columns]

    def _start(self, generator: torch.Generator) -> tuple[Chains, float, int]:
        warm = self.request.warm or {}
        shape = (self.options.n_chains, self.target.n_coordinates)
        position = warm.get("chains")
        if position is not None and position.shape == shape and "step" in warm:
            n_warmup = max(1, round(self.options.n_warmup * WARM_SHARE))
            return Chains.at(position.to(self.X), self.target), float(warm["step"]), n_warmup
        drawn = torch.randn(shape, generator=generator, dtype=self.X.dtype).to(self.X.device)
        return Chains.at(drawn, self.target), FIRST_STEP, self.options.n_warmup

    def _points(self, generator: torch.Generator) -> Tensor:
        seed = int(torch.randint(2**31, (1,), generator=generator))
        drawn = SobolEngine(self.X.shape[-1], scramble=True, seed=seed).draw(N_POINTS, dtype=torch.float64)
        return self.inputs(drawn)

    def _keep(self, made: Transition, points: Tensor, draws: _Draws, generator: torch.Generator) -> None:
        z = made.chains.position
        outputs = self.target.folded(z, self.target.last_layer(z).drawn(generator))
        draws.positions.append(z)
        draws.outputs.append(outputs)
        draws.values.append(
            self.network.functions(self.network.matrices(z, self.target.scales(z)), outputs, points)
        )
        draws.acceptance += float(made.acceptance.mean())
        draws.n_divergent += made.n_divergent

    def _adopt(self, draws: _Draws, chains: Chains, step: float) -> None:
        n = len(draws.positions) * self.options.n_chains
        # chain after chain, so that even spacing takes from every chain alike
        kept = torch.arange(self.options.n_members, device=self.X.device) * n // self.options.n_members
        self.load_state(
            {
                "chains": chains.position,
                "step": torch.tensor(step, dtype=torch.float64),
                "relevance": self._relevance,
                "priors": torch.tensor(astuple(self.prior.priors), dtype=torch.float64),
                "draw.positions": torch.stack(draws.positions, dim=1).flatten(0, 1)[kept],
                "draw.outputs": torch.stack(draws.outputs, dim=1).flatten(0, 1)[kept],
            }
        )

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        names = [field.name for field in fields(ScalePriors)]
        priors = {
            name: LogNormal(m, sd) for name, (m, sd) in zip(names, state["priors"].tolist(), strict=True)
        }
        self._set_target(ScalePriors(**priors), state["relevance"])
        super().load_state(state)

    def noise_variance(self) -> Tensor:
        """(1,), posterior mean of the learned noise variance; known variances of observations come on top."""
        noise = self.prior.noise(self.state()["draw.positions"].to(self.X))
        return noise.double().mean()[None].cpu()


def doubt(figures: Mapping[str, Any], options: HmcOptions) -> str | None:
    """Why draws with these figures cannot be trusted yet; None where they can."""
    r_hat, size, n = figures["r_hat"], figures["effective_sample_size"], figures["n_draws"]
    enough = min(MIN_SAMPLE_SIZE, 0.5 * options.n_chains * options.n_draws)
    if not r_hat < options.max_r_hat:
        return f"R-hat {r_hat:.3f} is not below {options.max_r_hat}"
    if not size > enough:
        return f"effective sample size {size:.0f} is not above {enough:.0f}"
    if not figures["acceptance"] >= MIN_ACCEPTANCE:
        return f"acceptance {figures['acceptance']:.2f} is below {MIN_ACCEPTANCE}"
    if not figures["n_divergent"] <= MAX_DIVERGENT * n:
        return f"{figures['n_divergent']} of {n} transitions diverged"
    return None
