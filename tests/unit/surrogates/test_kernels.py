"""Covariances with whitened hyperparameters, and the fit of them."""

from __future__ import annotations

import math

import pytest
import torch
from botorch.models.kernels.infinite_width_bnn import InfiniteWidthBNNKernel
from gpytorch.kernels import MaternKernel as GpytorchMatern

from surrogates.bnn.kernel_fit import KernelFit
from surrogates.bnn.kernels import MaternKernel, NetworkKernel
from surrogates.numerics.collapsed import LogNormal

ACTIVATIONS = ("tanh", "erf", "relu")
GROUPS = ((0,), (1, 2))


def points(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coordinates(n: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_relu_network_is_that_of_botorch_normalised(depth: int) -> None:
    kernel = NetworkKernel(GROUPS, depth, "relu", has_relevances=True)
    u = coordinates(kernel.n_coordinates)
    X = points(6)
    theirs = InfiniteWidthBNNKernel(depth=depth).double()
    theirs.weight_var, theirs.bias_var = float(kernel.weight(u[0])), float(kernel.bias(u[1]))
    relevance = kernel.relevance(u[3:])[torch.tensor([0, 1, 1])]
    with torch.no_grad():
        K = theirs((2 * X - 1) * relevance).to_dense()
    K = (K - theirs.bias_var) / theirs.weight_var
    expected = K / (K.diagonal()[:, None] * K.diagonal()).sqrt() * kernel.output(u[2])
    assert torch.allclose(kernel(u, X, X), expected, rtol=1e-5)


def test_the_erf_network_is_the_arcsine_formula() -> None:
    """Williams 1997, eq. 11, written out for one layer."""
    kernel = NetworkKernel(GROUPS, 1, "erf", has_relevances=False)
    u = coordinates(3)
    w, b, s = float(kernel.weight(u[0])), float(kernel.bias(u[1])), float(kernel.output(u[2]))
    x, y = 2 * points(2)[0] - 1, 2 * points(2)[1] - 1

    def k0(p: torch.Tensor, q: torch.Tensor) -> float:
        return b + w * float(p @ q) / 3

    def arcsine(p: torch.Tensor, q: torch.Tensor) -> float:
        return math.asin(2 * k0(p, q) / math.sqrt((1 + 2 * k0(p, p)) * (1 + 2 * k0(q, q))))

    expected = s * arcsine(x, y) / math.sqrt(arcsine(x, x) * arcsine(y, y))
    assert float(kernel(u, points(2)[:1], points(2)[1:])) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_positive_definite_with_a_constant_diagonal(activation: str, dtype: torch.dtype) -> None:
    kernel = NetworkKernel(GROUPS, 3, activation, has_relevances=True, dtype=dtype)
    u = coordinates(kernel.n_coordinates)
    X = points(40)
    K = kernel(u, X, X)
    assert K.dtype == torch.float64
    assert torch.allclose(K.diagonal(), kernel.variance(u).expand(40), rtol=1e-6)
    assert float(torch.linalg.eigvalsh(K).min()) > (-1e-12 if dtype == torch.float64 else -1e-5)


def test_gradients_are_finite_where_points_coincide() -> None:
    for kernel in (MaternKernel(GROUPS), NetworkKernel(GROUPS, 2, "erf", has_relevances=True)):
        u = coordinates(kernel.n_coordinates).requires_grad_()
        X = points(4).requires_grad_()
        for gradient in torch.autograd.grad(kernel(u, X, X).sum(), (u, X)):
            assert torch.isfinite(gradient).all()


def test_the_matern_covariance_is_that_of_gpytorch() -> None:
    kernel = MaternKernel(GROUPS)
    u = coordinates(2)
    theirs = GpytorchMatern(nu=2.5, ard_num_dims=3).double()
    theirs.lengthscale = kernel.lengthscale(u)[torch.tensor([0, 1, 1])]
    with torch.no_grad():
        assert torch.allclose(kernel(u, points(5), points(6, 1)), theirs(points(5), points(6, 1)).to_dense())


def fit_of(n: int) -> KernelFit:
    X = points(n)
    y = torch.sin(5 * X[:, 0])
    return KernelFit(X, y, torch.zeros(n).double(), kernel=MaternKernel(GROUPS), noise=LogNormal(-6.0, 1.0))


def test_the_objective_is_the_density_of_the_data_and_of_the_coordinates() -> None:
    process = fit_of(10)
    u = coordinates(3)
    given = process.at(u)
    K = process.kernel(u[:-1], process.X, process.X) + process.noise(u) * torch.eye(10)
    normal = torch.distributions.MultivariateNormal(given.constant.expand(10), K)
    expected = 0.5 * u.square().sum() - normal.log_prob(process.y) + 0.5e-4 * given.constant**2
    assert float(process.objective(u)) == pytest.approx(float(expected), abs=1e-8)


def test_no_small_step_improves_the_fit() -> None:
    process = fit_of(20)
    process.fit([torch.zeros(3)], limit=200, generator=torch.Generator().manual_seed(0))
    best = float(process.objective(process.coordinates))
    for i in range(3):
        for step in (-0.05, 0.05):
            moved = process.coordinates.clone()
            moved[i] += step
            assert float(process.objective(moved)) >= best - 1e-3


def test_leaving_one_out_by_formula_is_leaving_it_out() -> None:
    process = fit_of(8)
    process.adopt(torch.zeros(3))
    mean, variance = process.given.leave_one_out()
    u, noise = process.coordinates, float(process.noise(process.coordinates))
    rest = torch.arange(8) != 3
    K = process.kernel(u[:-1], process.X, process.X)
    A = torch.linalg.inv(K[rest][:, rest] + noise * torch.eye(7))
    constant = process.given.constant
    assert float(mean[3]) == pytest.approx(float(constant + K[3, rest] @ A @ (process.y[rest] - constant)))
    assert float(variance[3]) == pytest.approx(float(K[3, 3] + noise - K[3, rest] @ A @ K[rest, 3]))
