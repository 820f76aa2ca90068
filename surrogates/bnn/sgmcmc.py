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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import torch
from posteriors.sgmcmc import baoa
from torch import Tensor
from torch.func import jvp, vjp

from surrogates.bnn.network_members import NetworkMembers
from surrogates.bnn.options import SgmcmcOptions
from surrogates.bnn.priors import relative_relevance, standard_priors, study_gp
from surrogates.errors import FitDiverged
from surrogates.numerics.anchored import AnchoredLoss
from surrogates.numerics.collapsed import CollapsedPosterior
from surrogates.numerics.networks import Scales
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


class SgmcmcNetwork(NetworkMembers):
    """One outcome; see SgmcmcOptions."""

    def __init__(self, request: BuildRequest) -> None:
        super().__init__(request)
        assert isinstance(request.options, SgmcmcOptions)
        self.options = request.options

    def fit(self, generator: torch.Generator) -> None:
        """Start from anchored networks, run the chains, keep evenly spaced draws. Raises: FitDiverged."""
        rows = torch.randperm(len(self.y), generator=generator)[:N_START]
        noise = self._look(rows, generator)
        coordinates, start = self._start(rows, noise, generator)
        D = noise + self.variances
        longest = self.options.step * 2.0 / math.sqrt(self._curvature(coordinates, start, rows, D))
        schedule = Schedule(
            self.options.n_steps,
            self.options.n_cycles,
            self.options.exploration,
            longest,
            self.options.schedule == "cyclical",
        )
        kept = list(self._sampled(coordinates, start, D, schedule, generator))
        chosen = [kept[i * len(kept) // self._n_kept] for i in range(self._n_kept)]
        positions = torch.stack(chosen, dim=1)
        if not torch.isfinite(positions).all():
            raise FitDiverged("the chains left for infinity")
        self._report = {"longest_step": longest, "n_kept": len(kept) * self.options.n_chains}
        self._adopt(coordinates, positions, noise)

    @property
    def _n_kept(self) -> int:
        """Draws of each chain that become members."""
        return max(1, self.options.n_members // self.options.n_chains)

    def _look(self, rows: Tensor, generator: torch.Generator) -> float:
        """The noise variance; sets the relevances."""
        request = self.request
        known = request.train_Yvar
        part = replace(
            request,
            train_X=request.train_X[rows],
            train_Y=request.train_Y[rows],
            train_Yvar=None if known is None else known[rows],
        )
        gp = study_gp(part, generator)
        if self.options.relevance == "gp":
            self._relevance = relative_relevance(gp)
        return max(gp.core.noise, MIN_NOISE)

    def _posterior(self, rows: Tensor) -> CollapsedPosterior:
        return CollapsedPosterior(
            self.network,
            self.inputs(self.request.train_X[rows]),
            self.y[rows],
            self.variances[rows],
            self.request.encoding.groups,
            standard_priors(self.request),
            has_relevances=False,
        )

    def _start(self, rows: Tensor, noise: float, generator: torch.Generator) -> tuple[Coordinates, Tensor]:
        """Anchored networks trained on some rows, as the centre of the coordinates and the place in them."""
        posterior = self._posterior(rows)
        n_chains, n_weights = self.options.n_chains, self.network.n_weights

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.X.device)

        anchors = torch.zeros(n_chains, posterior.n_coordinates, dtype=self.X.dtype, device=self.X.device)
        anchors[:, :n_weights] = drawn(n_chains, n_weights).to(self.X)
        D = (noise + posterior.variances).expand(n_chains, -1)
        targets = posterior.y + D.sqrt() * drawn(n_chains, len(rows))
        loss = AnchoredLoss(posterior, anchors, drawn(n_chains, self.network.width + 1), targets, D)
        z = anchors.clone().requires_grad_()
        optimiser = torch.optim.Adam([z], lr=START_RATE)
        for _ in range(START_STEPS):
            with torch.no_grad():
                _, z.grad = loss(z)
            optimiser.step()
        z = z.detach()
        share = len(self.y) / len(rows)
        covariance = posterior.last_layer_given(z, (noise + posterior.variances) / share)
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
        coordinates: Coordinates,
        start: Tensor,
        D: Tensor,
        schedule: Schedule,
        generator: torch.Generator,
    ) -> Iterator[Tensor]:
        """The kept positions (C, P + H + 1), in order."""
        X = self.inputs(self.request.train_X)
        log_posterior = self._log_posterior(coordinates, X, D)
        # the library draws from torch's own generator
        with torch.random.fork_rng(devices=[X.device] if X.device.type == "cuda" else []):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            state = baoa.init(start)
            for step in range(schedule.n_steps):
                batch = torch.randint(len(X), (min(self.options.batch_size, len(X)),), generator=generator)
                if len(X) <= self.options.batch_size:
                    batch = torch.arange(len(X))
                state, _ = baoa.update(
                    state,
                    batch.to(X.device),
                    log_posterior,
                    lr=schedule.step_size(step),
                    alpha=self.options.friction,
                    temperature=schedule.temperature(step),
                )
                if schedule.is_kept(step):
                    yield state.params

    def _log_posterior(
        self, coordinates: Coordinates, X: Tensor, D: Tensor
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
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

    def _adopt(self, coordinates: Coordinates, positions: Tensor, noise: float) -> None:
        """Members from positions (C, k, P + H + 1), chain after chain."""
        found = [coordinates.split(positions[:, i]) for i in range(positions.shape[1])]
        z = torch.stack([z for z, _ in found], dim=1).flatten(0, 1)
        last = torch.stack([last for _, last in found], dim=1).flatten(0, 1)
        self.load_state(
            {
                "draw.positions": z,
                "draw.outputs": coordinates.posterior.folded(z, last),
                "relevance": self._relevance,
                "noise": torch.tensor([noise], dtype=torch.float64),
            }
        )

    def _scales(self, z: Tensor) -> Scales:
        return self._posterior(torch.arange(1)).scales(z)
