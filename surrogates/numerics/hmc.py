"""Hamiltonian Monte Carlo on a batch of chains: Metropolis-corrected leapfrog, step size by dual averaging.

Neal 2011, "MCMC using Hamiltonian dynamics", section 3; Hoffman and Gelman 2014, "The No-U-Turn Sampler", section
3.2, for the step size. Mass is the identity, so coordinates should be whitened; trajectories are then a quarter
of the period of a standard normal, pi / 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

LogDensity = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(C, P) -> log density (C,), float64, and gradient (C, P)."""

TRAJECTORY: Final = math.pi / 2
TARGET_ACCEPTANCE: Final = 0.8
MAX_LEAPFROGS: Final = 150
JITTER: Final = 0.2
"""Trajectories are as much shorter or longer, at random: none resonates with a period of the density."""

DIVERGED: Final = 1000.0
"""Energy error from which a trajectory counts as divergent."""

GAMMA, T0, KAPPA = 0.05, 10.0, 0.75


@dataclass(frozen=True)
class Chains:
    """Where C chains stand."""

    position: Tensor
    """(C, P)"""
    log_density: Tensor
    """(C,), float64"""
    gradient: Tensor
    """(C, P)"""

    @classmethod
    def at(cls, position: Tensor, log_density: LogDensity) -> Chains:
        return cls(position, *log_density(position))


@dataclass(frozen=True)
class Transition:
    """One step of all chains."""

    chains: Chains
    acceptance: Tensor
    """(C,), probability with which the proposal was accepted"""
    n_divergent: int


@dataclass(frozen=True)
class StepSize:
    """Dual averaging of the log step size; `average` is what sampling uses after warm-up."""

    current: float
    average: float
    centre: float
    error: float = 0.0
    n: int = 0

    @classmethod
    def starting_at(cls, step: float) -> StepSize:
        return cls(step, step, math.log(10.0 * step))

    def adapted(self, acceptance: float) -> StepSize:
        """After one transition with this mean acceptance; eq. 6 of Hoffman and Gelman."""
        n = self.n + 1
        error = self.error + (TARGET_ACCEPTANCE - acceptance - self.error) / (n + T0)
        log_step = self.centre - math.sqrt(n) / GAMMA * error
        weight = n**-KAPPA
        log_average = weight * log_step + (1 - weight) * (math.log(self.average) if self.n else log_step)
        return replace(self, current=math.exp(log_step), average=math.exp(log_average), error=error, n=n)


def transition(
    chains: Chains, log_density: LogDensity, *, step: float, n_leapfrog: int, generator: torch.Generator
) -> Transition:
    """Fresh momenta, `n_leapfrog` steps, accept or stay, each chain for itself."""
    q, gradient = chains.position, chains.gradient
    p = torch.randn(q.shape, generator=generator, dtype=q.dtype).to(q.device)
    energy = chains.log_density - 0.5 * (p * p).sum(-1).double()
    value = chains.log_density
    p = p + 0.5 * step * gradient
    for i in range(n_leapfrog):
        q = q + step * p
        value, gradient = log_density(q)
        p = p + (step if i < n_leapfrog - 1 else 0.5 * step) * gradient
    change = value - 0.5 * (p * p).sum(-1).double() - energy
    change = torch.where(torch.isfinite(change), change, torch.full_like(change, -math.inf))
    uniform = torch.rand(len(q), generator=generator, dtype=torch.float64).to(q.device)
    accepted = uniform.log() < change
    chosen = accepted[:, None]
    return Transition(
        Chains(
            torch.where(chosen, q, chains.position),
            torch.where(accepted, value, chains.log_density),
            torch.where(chosen, gradient, chains.gradient),
        ),
        change.clamp_max(0.0).exp(),
        int((change < -DIVERGED).sum()),
    )


def leapfrogs(step: float, generator: torch.Generator) -> int:
    """How many steps this trajectory takes: its length over the step, jittered and capped."""
    jitter = 1.0 + JITTER * (2.0 * float(torch.rand((), generator=generator)) - 1.0)
    return max(1, min(MAX_LEAPFROGS, round(jitter * TRAJECTORY / step)))


def warmed_up(
    chains: Chains, log_density: LogDensity, *, step: float, n: int, generator: torch.Generator
) -> tuple[Chains, float]:
    """The chains after `n` adapting transitions, and the step size found.

    Chains that never moved start again where the best one stands.
    """
    adaptation = StepSize.starting_at(step)
    has_moved = torch.zeros(len(chains.position), dtype=torch.bool, device=chains.position.device)
    for i in range(n):
        n_leapfrog = min(leapfrogs(adaptation.current, generator), 2 ** (i // 4 + 1))
        made = transition(
            chains, log_density, step=adaptation.current, n_leapfrog=n_leapfrog, generator=generator
        )
        has_moved |= (made.chains.position != chains.position).any(-1)
        chains = made.chains
        # harmonic: a step that is right for all chains but one would leave that one where it is
        adaptation = adaptation.adapted(1.0 / float((1.0 / made.acceptance.clamp_min(1e-3)).mean()))
    if n and not bool(has_moved.all()):
        best = int(chains.log_density.nan_to_num(nan=-math.inf).argmax())
        rows = torch.where(has_moved, torch.arange(len(has_moved), device=has_moved.device), best)
        chains = Chains(chains.position[rows], chains.log_density[rows], chains.gradient[rows])
    return chains, adaptation.average


def transitions(
    chains: Chains, log_density: LogDensity, *, step: float, n: int, generator: torch.Generator
) -> Iterator[Transition]:
    """`n` transitions with a fixed step size."""
    for _ in range(n):
        made = transition(
            chains,
            log_density,
            step=step,
            n_leapfrog=leapfrogs(step, generator),
            generator=generator,
        )
        chains = made.chains
        yield made
