"""The variational Gaussian process keeps the contract, and promises of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from surrogates.encoding import Encoding
from surrogates.gp.options import SvgpOptions
from surrogates.gp.svgp import SparseGP
from surrogates.numerics.exact_gp import Hyperparameters, condition
from surrogates.numerics.matern import matern52, squared_distance
from surrogates.numerics.sparse_gp import Collapsed
from surrogates.parameters import Float
from surrogates.protocol import BuildRequest
from surrogates.space import SearchSpace
from surrogates.testing.contract import SurrogateContract


def requested(n: int, d: int, *, noise: float = 0.0, **options: Any) -> BuildRequest:
    """A smooth function of the first two of d numbers."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, d, generator=generator, dtype=torch.float64)
    y = torch.sin(6 * X[:, 0]) + X[:, 1].square()
    y = (y - y.mean()) / y.std() + noise * torch.randn(n, generator=generator, dtype=torch.float64)
    space = SearchSpace(parameters=tuple(Float(name=f"x{i}", low=0, high=1) for i in range(d)))
    return BuildRequest(
        train_X=X,
        train_Y=y[:, None],
        train_Yvar=None,
        encoding=Encoding(space),
        options=SvgpOptions(**options),
    )


class TestSvgp(SurrogateContract):
    plugin = "svgp"

    @pytest.mark.parametrize("has_variances", [False, True])
    def test_with_every_observation_inducing_it_is_the_exact_process(self, has_variances: bool) -> None:
        """To 1e-3 of a standard deviation of the outputs: GPyTorch adds 1e-6 to two diagonals."""
        request = requested(40, 2, noise=0.1)
        known = torch.linspace(0.01, 0.5, 40, dtype=torch.float64)
        if has_variances:
            request = replace(request, train_Yvar=known[:, None])
        model = SparseGP(request)
        # lengthscales short enough for no observation to be superfluous
        state = {
            "inducing_points": request.train_X,
            "log_lengthscales": torch.tensor([-1.2, -0.9], dtype=torch.float64),
            "log_noise": torch.tensor(-4.0, dtype=torch.float64),
        }
        exact = condition(
            request.train_X.numpy(),
            request.train_Y[:, 0].numpy(),
            Hyperparameters(state["log_lengthscales"].numpy(), -4.0),
            ((0,), (1,)),
            known.numpy() if has_variances else None,
        )
        model.load_state({**state, "mean": torch.tensor(exact.mean)})
        x = torch.rand(50, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        with torch.no_grad():
            posterior = model.posterior(x)
        mean, variance = exact.predict(x.numpy())
        assert np.allclose(posterior.mean[:, 0].numpy(), mean, atol=1e-3)
        assert np.allclose(posterior.variance[:, 0].numpy(), variance, atol=1e-3)

    def test_a_few_inducing_points_tell_what_all_observations_say(self) -> None:
        request = requested(600, 3, noise=0.1, n_inducing=40)
        model = self.fitted(request)
        assert model.figures()["n_inducing"] == 40
        test = requested(700, 3).train_X[600:]
        y = torch.sin(6 * request.train_X[:, 0]) + request.train_X[:, 1].square()
        truth = (torch.sin(6 * test[:, 0]) + test[:, 1].square() - y.mean()) / y.std()
        with torch.no_grad():
            mean = model.posterior(test).mean[:, 0]
        assert (mean - truth).square().mean().sqrt() < 0.05
        assert model.noise_variance().item() == pytest.approx(0.01, rel=0.3)

    def test_a_warm_start_ends_where_a_cold_one_does(self) -> None:
        request = requested(200, 2, noise=0.1, n_inducing=40)
        cold = self.fitted(request)
        warm = self.fitted(replace(request, warm=cold.state()))
        assert torch.allclose(warm.state()["log_lengthscales"], cold.state()["log_lengthscales"], atol=0.1)


def test_the_bound_with_every_observation_is_the_marginal_likelihood() -> None:
    X = requested(30, 2).train_X
    y = torch.sin(5 * X[:, 0])
    noise = torch.linspace(0.01, 0.3, 30, dtype=torch.float64)
    lengthscales = torch.tensor([0.3, 0.5], dtype=torch.float64)
    found = Collapsed.of(X, X, y, noise, lengthscales, jitter=1e-9).bound()
    K = matern52(squared_distance(X / lengthscales, X / lengthscales)) + noise.diag()
    exact = -0.5 * (y @ torch.linalg.solve(K, y) + torch.logdet(K))
    assert float(found) == pytest.approx(float(exact), abs=1e-4)
    fewer = Collapsed.of(X, X[:10], y, noise, lengthscales, jitter=1e-9).bound()
    assert fewer < exact
