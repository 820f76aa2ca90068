"""Deep kernel learning is the Gaussian process until features predict better."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from surrogates.bnn.dkl import DeepKernel
from surrogates.bnn.options import DklOptions
from surrogates.encoding import Encoding
from surrogates.parameters import Float
from surrogates.protocol import DRAWS, BuildRequest
from surrogates.space import SearchSpace


def fitted(
    X: torch.Tensor,
    y: torch.Tensor,
    *,
    n_steps: int,
    seed: int = 0,
    warm: Mapping[str, torch.Tensor] | None = None,
) -> DeepKernel:
    space = SearchSpace(parameters=tuple(Float(name=f"x{i}", low=0, high=1) for i in range(X.shape[-1])))
    model = DeepKernel(
        BuildRequest(
            train_X=X,
            train_Y=(y - y.mean())[:, None] / y.std(),
            train_Yvar=None,
            encoding=Encoding(space),
            options=DklOptions(width=16, n_steps=n_steps),
            warm=warm,
        )
    )
    model.fit(torch.Generator().manual_seed(seed))
    return model


def points(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_without_features_it_is_the_gaussian_process() -> None:
    X = points(25, 3)
    model = fitted(X, torch.sin(5 * X[:, 0]) + X[:, 1], n_steps=0)
    x = points(10, 3, seed=1)
    ours, theirs = model.posterior(x), model.gp.posterior(x)
    assert torch.allclose(ours.mean, theirs.mean, atol=1e-6)
    assert torch.allclose(
        ours.distribution.covariance_matrix, theirs.distribution.covariance_matrix, atol=1e-6
    )


def excess_on_noise(seed: int) -> float:
    """By how many nats fresh noise is predicted worse than by the constant and the spread of 20 observations."""
    generator = torch.Generator().manual_seed(seed)
    X = points(20, 3, seed=seed)
    noise = torch.randn(420, generator=generator, dtype=torch.float64)
    y, fresh = noise[:20], (noise[20:] - noise[:20].mean()) / noise[:20].std()
    model = fitted(X, y, n_steps=200, seed=seed)
    with torch.no_grad():
        posterior = model.posterior(points(400, 3, seed=100 + seed))
    variance = posterior.variance[:, 0] + model.noise_variance()
    density = -0.5 * ((2 * math.pi * variance).log() + (fresh - posterior.mean[:, 0]).square() / variance)
    constant = -0.5 * (math.log(2 * math.pi) + fresh.square())
    return float((constant - density).mean())


def test_noise_teaches_it_nothing() -> None:
    """Where the Gaussian process by itself is worse by two nats and more."""
    assert sum(excess_on_noise(seed) for seed in range(6)) / 6 < 0.1


def test_features_are_learned_where_inputs_alone_predict_badly() -> None:
    """A step along an oblique direction: no lengthscale of the inputs has it."""
    X = points(60, 4)
    direction = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    model = fitted(X, torch.tanh(12 * X @ direction), n_steps=150)
    x = points(300, 4, seed=3)
    truth = torch.tanh(12 * x @ direction)
    target = torch.tanh(12 * X @ direction)
    truth = (truth - target.mean()) / target.std()
    with torch.no_grad():
        ours = (model.posterior(x).mean[:, 0] - truth).square().mean()
        theirs = (model.gp.posterior(x).mean[:, 0] - truth).square().mean()
    assert model.figures()["n_steps"] > 0
    assert float(ours) < float(theirs)


def test_a_later_fit_starts_anew_whatever_it_is_given() -> None:
    X = points(16, 2)
    y = torch.sin(5 * X[:, 0]) + X[:, 1]
    first = fitted(X, y, n_steps=20)
    assert all(name.startswith(DRAWS) for name in first.state())
    again = fitted(X, y, n_steps=20, warm=first.state())
    assert torch.equal(again.positions, first.positions)


def test_the_gaussian_processes_it_starts_from_are_fitted_with_its_generator() -> None:
    X = points(16, 2)
    model = fitted(X, X[:, 0], n_steps=0)
    generator, drawn = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    shown = [torch.arange(12), torch.arange(4, 16)]
    z = model._starts(generator, shown)
    torch.randn(z.shape, generator=drawn, dtype=torch.float64)
    assert not torch.equal(generator.get_state(), drawn.get_state())
