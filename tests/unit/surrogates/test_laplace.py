"""The Laplace approximation is the exact posterior of the linearised network."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from surrogates.bnn.kernel_gp import data_fit
from surrogates.bnn.kernels import NetworkKernel
from surrogates.bnn.laplace import LaplaceNetworks, with_noise_of_highest_evidence
from surrogates.bnn.options import LaplaceOptions
from surrogates.bnn.priors import noise_prior
from surrogates.encoding import Encoding
from surrogates.numerics.collapsed import LogNormal
from surrogates.numerics.linearised import Weights, climbed, log_joint, tangent_at, values
from surrogates.numerics.tangent import tangent_covariance
from surrogates.parameters import Float
from surrogates.protocol import BuildRequest
from surrogates.space import SearchSpace

SPACE = SearchSpace(parameters=tuple(Float(name=f"x{i}", low=0, high=1) for i in range(3)))
ACTIVATIONS = ("tanh", "erf", "relu")


def model(
    activation: str = "tanh", *, depth: int = 2, n: int = 12, width: int = 5, fit_points: int = 200
) -> LaplaceNetworks:
    X = torch.rand(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return LaplaceNetworks(
        BuildRequest(
            train_X=X,
            train_Y=torch.sin(6 * X[:, :1]),
            train_Yvar=torch.linspace(0.0, 0.2, n, dtype=torch.float64)[:, None],
            encoding=Encoding(SPACE),
            options=LaplaceOptions(width=width, depth=depth, activation=activation, fit_points=fit_points),
        )
    )


def weights_of(built: LaplaceNetworks, n: int = 1) -> Weights:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(n, built.target.n_coordinates, generator=generator, dtype=torch.float64)
    return Weights(z, torch.randn(n, built.network.width + 1, generator=generator, dtype=torch.float64))


def points(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def jacobian(built: LaplaceNetworks, weights: Weights, X: torch.Tensor) -> torch.Tensor:
    """(n, P) by automatic differentiation, in all whitened weights."""
    n = built.network.n_weights
    scales = weights.z[:, n:]

    def function(theta: torch.Tensor) -> torch.Tensor:
        z = torch.cat([theta[None, :n], scales], dim=-1)
        return values(built.target, Weights(z, theta[None, n:]), X)[0]

    return torch.func.jacrev(function)(torch.cat([weights.z[0, :n], weights.last[0]]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_covariance_is_that_of_the_jacobian(activation: str, depth: int) -> None:
    built = model(activation, depth=depth)
    weights = weights_of(built)
    J = jacobian(built, weights, built.X)
    there = tangent_at(built.target, weights, built.X)
    scales, output = built.target.scales(weights.z), built.target.output_scale(weights.z)
    assert torch.allclose(tangent_covariance(there, there, scales, output)[0], J @ J.T, atol=1e-8)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_posterior_is_that_of_the_weights_with_the_full_gauss_newton_matrix(activation: str) -> None:
    built = model(activation)
    weights = weights_of(built)
    built._adopt(weights)
    J = jacobian(built, weights, built.X)
    D = built.target.noise(weights.z) + built.variances
    S = torch.linalg.inv(J.T @ (J / D[:, None]) + torch.eye(J.shape[-1], dtype=torch.float64))
    x = points(4)
    there = jacobian(built, weights, 2 * x - 1)
    posterior = built.posterior(x)
    assert torch.allclose(posterior.covariances[0], there @ S @ there.T, atol=1e-5)
    assert torch.allclose(posterior.mean[:, 0], values(built.target, weights, 2 * x - 1)[0])


def test_with_fixed_features_it_is_bayesian_linear_regression() -> None:
    built = model()
    # hidden weights whose prior is a point: what is left to learn is linear
    tiny = LogNormal(math.log(1e-9), 0.0)
    built.target = replace(built.target, priors=replace(built.target.priors, weight=tiny, bias=tiny))
    weights = weights_of(built)
    n = built.network.n_weights
    weights = Weights(torch.cat([1e9 * weights.z[:, :n], weights.z[:, n:]], dim=-1), weights.last)
    exact = built.target.last_layer(weights.z)
    # one Gauss-Newton step would move the hidden weights, too: the last layer alone is solved for
    built._adopt(Weights(weights.z, exact.mean))
    x = points(4)
    psi = built.target.design(
        weights.z, built.network.features(weights.z, built.target.scales(weights.z), 2 * x - 1)
    )[0]
    posterior = built.posterior(x)
    assert torch.allclose(posterior.mean[:, 0], psi @ exact.mean[0], atol=1e-5)
    covariance = psi @ exact.factor[0] @ exact.factor[0].T @ psi.T
    assert torch.allclose(posterior.covariances[0], covariance, atol=1e-5)


def test_it_is_that_of_laplace_torch() -> None:
    laplace = pytest.importorskip("laplace")
    built = model()
    built.variances.zero_()
    weights = weights_of(built)
    built._adopt(weights)
    network = _as_module(built, weights)
    sigma = float(built.target.noise(weights.z).sqrt())
    theirs = laplace.Laplace(
        network,
        "regression",
        subset_of_weights="all",
        hessian_structure="full",
        sigma_noise=sigma,
        prior_precision=1.0,
    )
    data = torch.utils.data.TensorDataset(built.X, built.y[:, None])
    theirs.fit(torch.utils.data.DataLoader(data, batch_size=len(built.y)))
    x = points(4)
    mean, covariance = theirs(2 * x - 1, joint=True)
    posterior = built.posterior(x)
    assert torch.allclose(posterior.mean.flatten(), mean.flatten(), atol=1e-5)
    assert torch.allclose(posterior.covariances[0], covariance, atol=1e-5)


def _as_module(built: LaplaceNetworks, weights: Weights) -> Any:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            n = built.network.n_weights
            self.hidden = torch.nn.Parameter(weights.z[:, :n].clone())
            self.last = torch.nn.Parameter(weights.last.clone())
            self.register_buffer("scales", weights.z[:, n:].clone())

        def forward(self, X: torch.Tensor) -> torch.Tensor:
            z = torch.cat([self.hidden, self.scales], dim=-1)
            return values(built.target, Weights(z, self.last), X)[0][..., None]

    return Module()


def test_climbing_ends_where_the_gradient_vanishes() -> None:
    built = model()
    found = climbed(built.target, weights_of(built, 3), n_steps=200)
    z, last = found.z.clone().requires_grad_(), found.last.clone().requires_grad_()
    gradients = torch.autograd.grad(log_joint(built.target, Weights(z, last)).sum(), (z, last))
    assert gradients[0][:, : built.network.n_weights].abs().max() < 0.02
    assert gradients[1].abs().max() < 0.02


def test_every_step_is_upwards() -> None:
    built = model()
    weights = weights_of(built, 3)
    before = log_joint(built.target, weights)
    for _ in range(5):
        weights = climbed(built.target, weights, n_steps=1)
        after = log_joint(built.target, weights)
        assert (after >= before).all()
        before = after


def test_several_networks_are_equally_likely() -> None:
    built = model()
    weights = weights_of(built, 3)
    built._adopt(weights)
    x = points(2, 4)
    together = built.posterior(x)
    apart = []
    for i in range(3):
        built._adopt(weights.chosen(torch.tensor([i])))
        apart.append(built.posterior(x))
    assert torch.allclose(together.mean, torch.stack([p.mean for p in apart]).mean(0))
    for i, alone in enumerate(apart):
        assert torch.allclose(together.covariances[:, i], alone.covariances[:, 0], atol=1e-10)
    assert (together.variance >= torch.stack([p.variance for p in apart]).mean(0) - 1e-12).all()


def test_the_scales_are_those_of_the_infinitely_wide_network() -> None:
    built = model(n=30)
    built.fit(torch.Generator().manual_seed(0))
    scales = built.weights.z[:, built.network.n_weights : -1]
    assert torch.equal(scales, scales[:1].expand_as(scales))
    kernel = NetworkKernel(built.target.groups, 2, "tanh", has_relevances=True)
    process = data_fit(built.request, kernel, noise_prior(built.request))
    process.fit([torch.zeros(process.n_coordinates)], limit=200, generator=torch.Generator().manual_seed(1))
    # never less noise than there: a finite network fits no better
    wide = built.target.noise(process.coordinates[None].to(built.X))
    assert (built.target.noise(built.weights.z) > 0.99 * wide).all()
    # the wiggly input counts, the other two hardly
    relevances = built.target.scales(built.weights.z).relevance[0, :, 0]
    assert relevances[0] > 2.0 * relevances[1:].max()


def test_all_observations_count_where_some_were_trained_on() -> None:
    few = model(n=60, width=32, depth=1, fit_points=20)
    few.fit(torch.Generator().manual_seed(0))
    with torch.no_grad():
        residual = few.posterior(few.request.train_X).mean - few.request.train_Y
    assert residual.square().mean() < 0.1 * few.request.train_Y.var()
    assert few.figures()["n_networks"] >= 1


def test_noise_explains_a_misfit() -> None:
    built = model(n=40)
    weights = climbed(built.target, weights_of(built, 2), n_steps=30)
    off = replace(built.target, y=built.target.y + 0.5 * (-1.0) ** torch.arange(40, dtype=torch.float64))
    fitting, _ = with_noise_of_highest_evidence(built.target, weights)
    missing, evidence = with_noise_of_highest_evidence(off, weights)
    assert (built.target.noise(missing.z) > 5.0 * built.target.noise(fitting.z)).all()
    for less in (0.5, 1.0, 2.0):
        z = missing.z.clone()
        z[:, -1] -= less
        _, lower = with_noise_of_highest_evidence(off, Weights(z, missing.last))
        assert (lower <= evidence + 1e-9).all(), "it was the highest"


def test_a_network_that_is_stuck_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    built = model(n=40, width=16)
    trained = built._trained

    def one_stuck(part: Any, weights: Weights) -> Weights:
        found = trained(part, weights)
        last = found.last.clone()
        last[3] *= 100.0
        return Weights(found.z, last)

    built.fit(torch.Generator().manual_seed(0))
    n_kept = built.figures()["n_networks"]
    kept = built.weights.last
    monkeypatch.setattr(built, "_trained", one_stuck)
    built.fit(torch.Generator().manual_seed(0))
    assert n_kept == 8
    assert built.figures()["n_networks"] == 7
    assert torch.equal(built.weights.last, kept[[0, 1, 2, 4, 5, 6, 7]])
