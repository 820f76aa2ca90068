"""Stacked networks, their closed-form posterior density, and the kernel they tend to."""

from __future__ import annotations

import math

import pytest
import torch

from surrogates.numerics.collapsed import CollapsedPosterior, LogNormal, NetworkPrior, default_scale_priors
from surrogates.numerics.networks import Network, Scales
from surrogates.numerics.nngp import expected_product, nngp_covariance

ACTIVATIONS = ("tanh", "erf", "relu")


def scales(n: int, d: int, *, weight: float = 1.4, bias: float = 0.7) -> Scales:
    ones = torch.ones(n, 1, 1, dtype=torch.float64)
    return Scales(
        weight * ones, bias * ones, torch.linspace(0.5, 2.0, d, dtype=torch.float64).expand(n, d)[..., None]
    )


def posterior(n: int, activation: str = "tanh", *, ard: bool = True, d: int = 3) -> CollapsedPosterior:
    generator = torch.Generator().manual_seed(1)
    X = 2 * torch.rand(n, d, generator=generator, dtype=torch.float64) - 1
    prior = NetworkPrior(
        network=Network(d, 6, 2, activation),
        groups=[(0,), (1, 2)],
        priors=default_scale_priors(activation, noise=LogNormal(-3.0, 1.0)),
        has_relevances=ard,
    )
    return prior.given(X, torch.sin(3 * X[:, 0]), torch.linspace(0, 0.1, n, dtype=torch.float64))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_stacked_networks_compute_what_a_loop_over_layers_does(activation: str) -> None:
    network = Network(3, 5, 2, activation)
    z = torch.randn(4, network.n_weights, dtype=torch.float64)
    X = torch.rand(7, 3, dtype=torch.float64)
    s = scales(4, 3)
    phi = {"tanh": torch.tanh, "erf": torch.erf, "relu": torch.relu}[activation]
    for c in range(4):
        first, rest = z[c, : 3 * 5 + 5], z[c, 3 * 5 + 5 :]
        W0 = first[:15].reshape(3, 5) * 1.4 / math.sqrt(3) * s.relevance[c]
        h = phi(X @ W0 + 0.7 * first[15:])
        h = phi(h @ (rest[:25].reshape(5, 5) * 1.4 / math.sqrt(5)) + 0.7 * rest[25:])
        assert torch.allclose(network.features(z, s, X)[c], h)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n", [4, 30], ids=["fewer points than features", "more"])
@pytest.mark.parametrize("ard", [True, False])
def test_the_gradient_of_the_density_is_its_slope(activation: str, n: int, ard: bool) -> None:
    target = posterior(n, activation, ard=ard)
    z = torch.randn(2, target.n_coordinates, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    _, gradient = target(z)
    step = 1e-6
    for i in range(target.n_coordinates):
        up, down = z.clone(), z.clone()
        up[:, i] += step
        down[:, i] -= step
        slope = (target(up)[0] - target(down)[0]) / (2 * step)
        assert torch.allclose(gradient[:, i], slope, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [4, 30], ids=["fewer points than features", "more"])
def test_the_density_is_the_gaussian_of_the_observations_times_the_prior(n: int) -> None:
    target = posterior(n)
    z = torch.randn(3, target.n_coordinates, dtype=torch.float64)
    psi = target.design(z, target.network.features(z, target.scales(z), target.X))
    for c in range(3):
        K = psi[c] @ psi[c].T + torch.diag(target.noise(z)[c] + target.variances)
        normal = torch.distributions.MultivariateNormal(torch.zeros(n, dtype=torch.float64), K)
        expected = normal.log_prob(target.y) - 0.5 * z[c].square().sum()
        assert float(target(z)[0][c]) == pytest.approx(float(expected), abs=1e-6)


def test_the_last_layer_is_bayesian_linear_regression() -> None:
    target = posterior(12)
    z = torch.randn(2, target.n_coordinates, dtype=torch.float64)
    psi = target.design(z, target.network.features(z, target.scales(z), target.X))
    found = target.last_layer(z)
    for c in range(2):
        D = torch.diag(1.0 / (target.noise(z)[c] + target.variances))
        covariance = torch.linalg.inv(psi[c].T @ D @ psi[c] + torch.eye(7, dtype=torch.float64))
        assert torch.allclose(found.mean[c], covariance @ psi[c].T @ D @ target.y, atol=1e-8)
        assert torch.allclose(found.factor[c] @ found.factor[c].T, covariance, atol=1e-8)


def test_a_folded_last_layer_gives_the_same_function() -> None:
    target = posterior(12)
    z = torch.randn(2, target.n_coordinates, dtype=torch.float64)
    last = torch.randn(2, 7, dtype=torch.float64)
    matrices = target.network.matrices(z, target.scales(z))
    psi = target.design(z, target.network.features(z, target.scales(z), target.X))
    found = target.network.functions(matrices, target.folded(z, last), target.X)
    assert torch.allclose(found, (psi @ last[..., None])[..., 0])


def test_a_density_that_overflows_is_minus_infinity_and_no_error() -> None:
    target = posterior(12, "relu")
    z = 1e3 * torch.ones(1, target.n_coordinates, dtype=torch.float64)
    assert float(target(z)[0]) == -math.inf


@pytest.mark.parametrize("activation", ["erf", "relu"])
def test_expected_products_are_those_of_normal_draws(activation: str) -> None:
    K = torch.tensor([[1.3, 0.4], [0.4, 0.8]], dtype=torch.float64)
    draws = torch.randn(400_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = draws @ torch.linalg.cholesky(K).T
    phi = torch.erf if activation == "erf" else torch.relu
    found = expected_product(K[0, 1], K[0, 0], K[1, 1], activation)
    assert float(found) == pytest.approx(float((phi(u[:, 0]) * phi(u[:, 1])).mean()), abs=5e-3)


@pytest.mark.parametrize("activation", ["erf", "relu"])
def test_wide_networks_have_the_covariance_of_the_kernel(activation: str) -> None:
    network = Network(3, 512, 2, activation)
    generator = torch.Generator().manual_seed(3)
    X = torch.rand(5, 3, generator=generator, dtype=torch.float64) * 2 - 1
    s = scales(1, 3)
    total = torch.zeros(5, 5, dtype=torch.float64)
    for _ in range(60):
        z = torch.randn(8, network.n_weights, generator=generator, dtype=torch.float64)
        features = network.features(z, scales(8, 3), X)
        total += (features @ features.transpose(-1, -2)).mean(0) / 512 / 60
    expected, _, _ = nngp_covariance(
        X * s.relevance[0, :, 0], depth=2, activation=activation, weight_variance=1.96, bias_variance=0.49
    )
    assert torch.allclose(total, expected, rtol=0.02)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_kernel_has_finite_gradients_where_points_coincide(activation: str) -> None:
    x = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    k, left, right = nngp_covariance(
        x, x.detach(), depth=3, activation=activation, weight_variance=2.0, bias_variance=1.0
    )
    (gradient,) = torch.autograd.grad((k + left + right).sum(), x)
    assert torch.isfinite(gradient).all()
    others = x.detach().clone().flip(0) + 0.1
    assert torch.autograd.gradcheck(
        lambda a: nngp_covariance(
            a, others, depth=3, activation=activation, weight_variance=2.0, bias_variance=1.0
        )[0],
        x,
    )
