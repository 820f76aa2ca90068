"""Bayesian neural network by stochastic-gradient Hamiltonian Monte Carlo, for more observations than HMC can pass over.

Chen et al. 2014, "Stochastic gradient Hamiltonian Monte Carlo", through the `posteriors` library. Of its integrators
the splitting BAOA is taken (Leimkuhler and Matthews 2015): the Euler steps of its `sghmc` are unstable unless friction
exceeds step times curvature, which here would leave no momentum to speak of. Cyclical step sizes after Zhang et al.
2020, "Cyclical stochastic gradient MCMC for Bayesian deep learning", eq. 1 and algorithm 1: each cycle first explores
with long steps and without noise, then samples with short ones. Chains lie in one tensor.

Coordinates are whitened: hidden weights by their prior, last layers by their posterior given the hidden weights that
the chains start from. Chains start from anchored networks trained on a part of the data. The longest step is a share
of the stability limit 2 / sqrt(largest curvature), found by power iteration. Noise variance and relevances come from
the study's Gaussian process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from posteriors.sgmcmc import baoa
from torch import Tensor
from torch.func import jvp, vjp

from surrogates.bnn.network_members import AnchoredMembers
from surrogates.bnn.options import SgmcmcOptions
from surrogates.errors import FitDiverged
from surrogates.numerics.anchored import randomised, trained
from surrogates.numerics.collapsed import CollapsedPosterior
from surrogates.protocol import BuildRequest

N_START: Final = 500
"""Observations that the start is trained on and the curvature measured on."""

START_STEPS: Final = 100
START_RATE: Final = 0.01
MIN_NOISE: Final = 1e-3
"""Least noise variance: gradients of minibatches are noisier than a smaller one would show."""

N_POWER: Final = 10
BURN_IN: Final = 0.25
"""Part of a run with constant steps that is thrown away."""


@dataclass(frozen=True)
class Schedule:
    """Step size and temperature at every step, and which steps are kept."""

    n_steps: int
    n_cycles: int
    exploration: float
    longest: float
    is_cyclical: bool

    def _place(self, step: int) -> float:
        """How far into its cycle a step is, in [0, 1)."""
        length = math.ceil(self.n_steps / self.n_cycles)
        return (step % length) / length

    def step_size(self, step: int) -> float:
        if not self.is_cyclical:
            return self.longest
        # never quite zero: the last steps of a cycle still move
        return self.longest * max(0.05, 0.5 * (math.cos(math.pi * self._place(step)) + 1.0))

    def temperature(self, step: int) -> float:
        return 0.0 if self.is_cyclical and self._place(step) < self.exploration else 1.0

    def is_kept(self, step: int) -> bool:
        if self.is_cyclical:
            return self._place(step) >= self.exploration
        return step >= BURN_IN * self.n_steps

    def chosen_steps(self, n: int) -> list[int]:
        """`n` steps evenly spaced among the kept ones, ascending; some repeated where fewer are kept."""
        kept = [step for step in range(self.n_steps) if self.is_kept(step)]
        return [kept[i * len(kept) // n] for i in range(n)]


@dataclass(frozen=True)
class Coordinates:
    """Positions (C, P + H + 1): hidden weights, then last layers whitened around `centre`."""

    posterior: CollapsedPosterior
    scale_coordinates: Tensor
    """(C, n scales), held"""
    centre: Tensor
    """(C, H + 1)"""
    factor: Tensor
    """(C, H + 1, H + 1), R of the last layers' posterior"""

    def split(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened hidden weights with scales (C, P + n scales), and last layers (C, H + 1)."""
        n_weights = self.posterior.network.n_weights
        last = self.centre + (self.factor @ position[:, n_weights:, None])[..., 0]
        return torch.cat([position[:, :n_weights], self.scale_coordinates], dim=1), last

    def functions(self, position: Tensor, X: Tensor) -> Tensor:
        """Values (C, n) at network inputs X (n, d)."""
        z, last = self.split(position)
        target = self.posterior
        matrices = target.network.matrices(z, target.scales(z))
        return target.network.functions(matrices, target.folded(z, last), X)

    def log_prior(self, position: Tensor) -> Tensor:
        """(C,), of hidden weights and last layers."""
        _, last = self.split(position)
        n_weights = self.posterior.network.n_weights
        return -0.5 * (position[:, :n_weights].square().sum(-1) + last.square().sum(-1))


LogPosterior = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Positions (C, P + H + 1) and rows of a minibatch -> their estimate of the log posterior: sum () and each (C,)."""


class SgmcmcNetwork(AnchoredMembers):
    """One outcome; see SgmcmcOptions."""

    def __init__(self, request: BuildRequest) -> None:
        super().__init__(request)
        assert isinstance(request.options, SgmcmcOptions)
        self.options = request.options

    def fit(self, generator: torch.Generator) -> None:
        """Start from anchored networks, run the chains, keep evenly spaced draws. Raises: FitDiverged."""
        options = self.options
        rows = torch.randperm(len(self.y), generator=generator)[:N_START]
        self._set_noise_and_relevance(generator, least_noise=MIN_NOISE, rows=rows)
        coordinates, start = self._start(rows, generator)
        D = self._noise + self.variances
        longest = options.step * 2.0 / math.sqrt(self._curvature(coordinates, start, rows, D))
        schedule = Schedule(
            options.n_steps, options.n_cycles, options.exploration, longest, options.schedule == "cyclical"
        )
        steps = schedule.chosen_steps(math.ceil(options.n_members / options.n_chains))
        positions = self._sampled(self._log_posterior(coordinates, D), start, schedule, steps, generator)
        if not torch.isfinite(positions).all():
            raise FitDiverged("the chains left for infinity")
        self._report = {"longest_step": longest, "n_kept": len(set(steps)) * options.n_chains}
        self._adopt(*self._members(coordinates, positions))

    def _start(self, rows: Tensor, generator: torch.Generator) -> tuple[Coordinates, Tensor]:
        """Anchored networks trained on some rows, as the centre of the coordinates and the place in them."""
        posterior, n_weights = self.collapsed(rows), self.network.n_weights
        loss = randomised(posterior, self._noise, self.options.n_chains, generator)
        z = trained(loss, n_steps=START_STEPS, rate=START_RATE)
        share = len(self.y) / len(rows)
        covariance = posterior.last_layer_given(z, (self._noise + posterior.variances) / share)
        centre = loss.last_layer(z)
        position = torch.cat([z[:, :n_weights], torch.zeros_like(centre).to(z)], dim=1)
        return (
            Coordinates(posterior, z[:, n_weights:], centre.to(z), covariance.factor.to(z)),
            position,
        )

    def _curvature(self, coordinates: Coordinates, start: Tensor, rows: Tensor, D: Tensor) -> float:
        """Largest eigenvalue of the log posterior's Gauss-Newton matrix over the chains, by power iteration."""
        X = self.inputs(self.request.train_X[rows])
        weights = (len(self.y) / len(rows) / D[rows]).to(start)

        def values(position: Tensor) -> Tensor:
            return coordinates.functions(position, X)

        direction = start.clone()
        norm = torch.ones(len(start), 1, dtype=start.dtype, device=start.device)
        for _ in range(N_POWER):
            direction = direction / direction.norm(dim=1, keepdim=True)
            slope = jvp(values, (start,), (direction,))[1]
            pullback = vjp(values, start)[1]
            (direction,) = pullback(slope * weights)
            norm = direction.norm(dim=1, keepdim=True)
        # the prior's own curvature is 1
        return 1.0 + float(norm.max())

    def _sampled(
        self,
        log_posterior: LogPosterior,
        start: Tensor,
        schedule: Schedule,
        steps: Sequence[int],
        generator: torch.Generator,
    ) -> Tensor:
        """Positions (C, k, P + H + 1) after k ascending steps."""
        n, size = len(self.y), min(self.options.batch_size, len(self.y))
        found = dict.fromkeys(steps, start)
        # the library draws from torch's own generator
        with torch.random.fork_rng(devices=[start.device] if start.device.type == "cuda" else []):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            state = baoa.init(start)
            for step in range(steps[-1] + 1):
                batch = torch.randint(n, (size,), generator=generator) if size < n else torch.arange(n)
                state, _ = baoa.update(
                    state,
                    batch.to(start.device),
                    log_posterior,
                    lr=schedule.step_size(step),
                    alpha=self.options.friction,
                    temperature=schedule.temperature(step),
                )
                if step in found:
                    found[step] = state.params
        return torch.stack([found[step] for step in steps], dim=1)

    def _log_posterior(self, coordinates: Coordinates, D: Tensor) -> LogPosterior:
        X = self.inputs(self.request.train_X)
        y, precision = self.y.to(X), (1.0 / D).to(X)

        def log_posterior(position: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
            residual = y[batch] - coordinates.functions(position, X[batch])
            share = len(X) / len(batch)
            total = coordinates.log_prior(position) - 0.5 * share * (
                residual.square() * precision[batch]
            ).sum(-1)
            # chains do not see each other, so the gradient of their sum is each one's own
            return total.sum(), total

        return log_posterior

    def _members(self, coordinates: Coordinates, positions: Tensor) -> tuple[Tensor, Tensor]:
        """`n_members` networks, evenly from positions (C, k, P + H + 1) of all chains, and their last layers."""
        found = [coordinates.split(positions[:, i]) for i in range(positions.shape[1])]
        # chain after chain
        z = torch.stack([z for z, _ in found], dim=1).flatten(0, 1)
        last = torch.stack([last for _, last in found], dim=1).flatten(0, 1)
        n = self.options.n_members
        evenly = torch.arange(n, device=z.device) * len(z) // n
        return z[evenly], self.prior.folded(z[evenly], last[evenly])
