"""The Gaussian process keeps the contract, and promises of its own."""

from __future__ import annotations

import numpy as np
import torch

from surrogates.gp.model import FastGP
from surrogates.gp.options import GpOptions
from surrogates.testing.contract import SurrogateContract


class TestGp(SurrogateContract):
    plugin = "gp"

    def test_the_numpy_core_and_gpytorch_give_the_same_posterior(self) -> None:
        model = self.fitted(self.request())
        x = torch.rand(6, 4, dtype=torch.float64)
        with torch.no_grad():
            posterior = model.posterior(x)
        mean, variance = model.core.predict(x.numpy())
        assert np.allclose(posterior.mean[:, 0].numpy(), mean, atol=1e-6)
        assert np.allclose(posterior.variance[:, 0].numpy(), variance, atol=1e-6)

    def test_known_noise_is_added_to_the_learned_one(self) -> None:
        request = self.request()
        noisy = FastGP(request.train_X, request.train_Y, torch.full_like(request.train_Y, 0.5))
        noisy.fit(torch.Generator().manual_seed(0))
        with torch.no_grad():
            residual = (noisy.posterior(request.train_X).mean - request.train_Y).abs().mean()
        exact = self.fitted(request)
        with torch.no_grad():
            assert residual > (exact.posterior(request.train_X).mean - request.train_Y).abs().mean()

    def test_a_warm_start_reaches_the_same_optimum(self) -> None:
        request = self.request()
        cold = self.fitted(request)
        warm = FastGP(
            request.train_X,
            request.train_Y,
            groups=request.encoding.groups,
            options=GpOptions(),
            warm=cold.state(),
        )
        warm.fit(torch.Generator().manual_seed(0))
        assert torch.allclose(warm.state()["log_lengthscales"], cold.state()["log_lengthscales"], atol=0.1)

    def test_large_data_are_fitted_on_a_subset(self) -> None:
        X = torch.rand(400, 2, dtype=torch.float64)
        Y = torch.sin(5 * X[:, :1])
        model = FastGP(X, Y, options=GpOptions(fit_points=60))
        model.fit(torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert (model.posterior(X).mean - Y).abs().max() < 0.05
