"""The deep kernel machine is the infinitely wide network where its Gram matrices are held fast."""

from __future__ import annotations

import pytest
import torch
from deep_kernel_machine import compared, grams, learned, objective

# a fit of 20 points is enough for what holds at any size
ROWS = list(compared("hartmann6", 20, 0, [1e8, 10.0], 20))


def test_with_a_large_nu_it_is_the_network() -> None:
    network, fast, _ = ROWS
    for name in ("objective", "log_evidence", "rmse", "nll", "coverage_80"):
        assert fast[name] == pytest.approx(network[name], abs=1e-2)


def test_its_objective_is_at_least_the_evidence_of_the_network() -> None:
    network, _, free = ROWS
    assert free["objective"] >= network["objective"] - 1e-3


def test_the_divergence_is_that_of_the_normals() -> None:
    """KL(N(0, G) || N(0, K)) of the parameters B, beside torch's."""
    from deep_kernel_machine import Inputs, Scales

    one = torch.ones((), dtype=torch.float64)
    scales = Scales(2 * one, one, one, 0.1 * one, "erf")
    generator = torch.Generator().manual_seed(0)
    inputs = Inputs(2 * torch.rand(6, 2, generator=generator, dtype=torch.float64) - 1, scales)
    y = torch.randn(6, generator=generator, dtype=torch.float64)
    B = (torch.eye(6) + 0.1 * torch.randn(6, 6, generator=generator)).double()[None]
    ((K, G),) = grams(inputs, B)
    zero = torch.zeros(6, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal
    expected = torch.distributions.kl_divergence(normal(zero, G), normal(zero, K))
    total, evidence = objective(inputs, B, y, 3.0)
    assert float(evidence - total) == pytest.approx(3.0 * float(expected), rel=1e-5)
    assert learned(inputs, y, 2, 3.0, 5).shape == (1, 6, 6)
