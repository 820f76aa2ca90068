"""Hamiltonian Monte Carlo and what judges it."""

from __future__ import annotations

import math

import pytest
import torch

from surrogates.numerics.convergence import effective_sample_size, split_r_hat
from surrogates.numerics.hmc import Chains, StepSize, leapfrogs, transition, transitions, warmed_up


def normal(mean: torch.Tensor, precision: torch.Tensor):
    def log_density(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gradient = -(z - mean) @ precision
        return 0.5 * ((z - mean) * gradient).sum(-1), gradient

    return log_density


def draws(log_density, *, n_chains: int, n: int, d: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(n_chains, d, generator=generator, dtype=torch.float64)
    chains, step = warmed_up(Chains.at(start, log_density), log_density, step=0.1, n=100, generator=generator)
    made = transitions(chains, log_density, step=step, n=n, generator=generator)
    return torch.stack([m.chains.position for m in made], dim=1)


def test_a_conjugate_posterior_is_recovered() -> None:
    generator = torch.Generator().manual_seed(4)
    X = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    y = X @ torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64)
    precision = X.T @ X / 0.25 + torch.eye(3, dtype=torch.float64)
    covariance = torch.linalg.inv(precision)
    mean = covariance @ X.T @ y / 0.25
    found = draws(normal(mean, precision), n_chains=8, n=500, d=3)
    sd = covariance.diagonal().sqrt()
    assert ((found.mean((0, 1)) - mean).abs() / sd).max() < 0.1
    ratio = found.reshape(-1, 3).var(0) / covariance.diagonal()
    assert ((ratio > 0.9) & (ratio < 1.1)).all()
    assert split_r_hat(found).max() < 1.02


def test_leapfrog_is_reversible_and_keeps_the_energy() -> None:
    target = normal(torch.zeros(5, dtype=torch.float64), torch.eye(5, dtype=torch.float64))
    chains = Chains.at(torch.randn(4, 5, dtype=torch.float64), target)
    made = transition(chains, target, step=0.01, n_leapfrog=20, generator=torch.Generator().manual_seed(0))
    assert (made.acceptance > 0.999).all()
    assert made.n_divergent == 0


def test_a_step_that_is_far_too_long_is_refused_and_counted() -> None:
    target = normal(torch.zeros(5, dtype=torch.float64), 1e4 * torch.eye(5, dtype=torch.float64))
    chains = Chains.at(0.01 * torch.ones(4, 5, dtype=torch.float64), target)
    made = transition(chains, target, step=1.0, n_leapfrog=5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.chains.position, chains.position)
    assert made.n_divergent == 4


def test_the_step_size_grows_while_proposals_are_accepted_and_shrinks_while_not() -> None:
    up = down = StepSize.starting_at(0.1)
    for _ in range(30):
        up, down = up.adapted(1.0), down.adapted(0.0)
    assert up.average > 0.1 > down.average


def test_trajectories_are_a_quarter_period_long_and_capped() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [0.1 * leapfrogs(0.1, generator) for _ in range(200)]
    assert sum(lengths) / 200 == pytest.approx(math.pi / 2, rel=0.05)
    assert leapfrogs(1e-6, generator) == 150


def test_chains_that_disagree_have_a_large_r_hat() -> None:
    x = torch.randn(4, 100, 2, generator=torch.Generator().manual_seed(0))
    assert split_r_hat(x).max() < 1.03
    x[0, :, 1] += 3.0
    assert split_r_hat(x)[0] < 1.03
    assert split_r_hat(x)[1] > 1.3


def test_a_chain_that_drifts_has_a_large_r_hat() -> None:
    x = torch.randn(4, 100, 1) + torch.linspace(0, 4, 100)[None, :, None]
    assert split_r_hat(x)[0] > 1.3


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_the_effective_sample_size_of_an_autoregression_is_the_known_one(phi: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(8, 2000, 1, dtype=torch.float64)
    for t in range(1, 2000):
        x[:, t] = phi * x[:, t - 1] + torch.randn(8, 1, generator=generator, dtype=torch.float64)
    expected = 16_000 * (1 - phi) / (1 + phi)
    assert float(effective_sample_size(x)[0]) == pytest.approx(expected, rel=0.15)


def test_what_never_moves_counts_as_it_should() -> None:
    constant = torch.ones(4, 50, 1)
    assert float(split_r_hat(constant)[0]) == 1.0
    stuck = constant * torch.arange(4.0)[:, None, None]
    assert float(split_r_hat(stuck)[0]) == math.inf
