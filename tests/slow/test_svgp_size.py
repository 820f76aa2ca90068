"""The variational Gaussian process fits five thousand observations on one core within a minute."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from surrogates.encoding import Encoding
from surrogates.parameters import Float
from surrogates.protocol import BuildRequest
from surrogates.registry import plugin
from surrogates.space import SearchSpace

pytestmark = pytest.mark.slow


def function(X: torch.Tensor) -> torch.Tensor:
    return torch.sin(5 * X[:, 0]) + X[:, 1] * X[:, 2] - X[:, 3].square()


def test_five_thousand_noisy_observations_take_less_than_a_minute() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(5200, 6, generator=generator, dtype=torch.float64)
    y = function(X)
    y = (y - y.mean()) / y.std()
    noisy = y + 0.3 * torch.randn(len(y), generator=generator, dtype=torch.float64)
    chosen = plugin("svgp")
    space = SearchSpace(parameters=tuple(Float(name=f"x{i}", low=0, high=1) for i in range(6)))
    model: Any = chosen.build(
        BuildRequest(
            train_X=X[:5000],
            train_Y=noisy[:5000, None],
            train_Yvar=None,
            encoding=Encoding(space),
            options=chosen.options.model_validate({}),
        )
    )
    started = time.process_time()
    model.fit(torch.Generator().manual_seed(0))
    assert time.process_time() - started < 60
    with torch.no_grad():
        posterior = model.posterior(X[5000:])
    error = posterior.mean[:, 0] - y[5000:]
    assert error.square().mean().sqrt() < 0.1
    assert model.noise_variance().item() == pytest.approx(0.09, rel=0.1)
    assert (error.abs() < 1.645 * posterior.variance[:, 0].sqrt()).double().mean() > 0.75
