"""The neural-linear model has an exact last layer, and none of the defects of variational ones."""

from __future__ import annotations

import pytest
import torch

from surrogates.bnn import infinite_width, neural_linear
from surrogates.bnn.infinite_width import scales_of_infinite_width, whitened
from surrogates.bnn.neural_linear import NeuralLinear
from surrogates.bnn.options import NeuralLinearOptions
from surrogates.encoding import Encoding
from surrogates.numerics.ascent import ascended, held_out
from surrogates.numerics.collapsed import LogNormal
from surrogates.parameters import Float
from surrogates.protocol import DRAWS, BuildRequest
from surrogates.space import SearchSpace

SPACE = SearchSpace(parameters=tuple(Float(name=f"x{i}", low=0, high=1) for i in range(2)))


def fitted(n: int = 16, *, n_members: int = 2, noise: float = 0.0) -> NeuralLinear:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    y = torch.sin(6 * X[:, :1]) + noise * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    options = NeuralLinearOptions(width=32, depth=1, n_members=n_members, n_steps=60)
    model = NeuralLinear(
        BuildRequest(train_X=X, train_Y=y, train_Yvar=None, encoding=Encoding(SPACE), options=options)
    )
    model.fit(torch.Generator().manual_seed(1))
    return model


def test_each_member_is_bayesian_linear_regression_on_its_features() -> None:
    model = fitted()
    x = torch.rand(3, 2, dtype=torch.float64)
    posterior = model.posterior(x)
    z, target = model.positions, model.target
    for member in range(2):
        one = z[member : member + 1]
        psi = target.design(one, model.network.features(one, target.scales(one), model.X))[0]
        there = target.design(one, model.network.features(one, target.scales(one), 2 * x - 1))[0]
        noise = float(target.noise(one))
        S = torch.linalg.inv(psi.T @ psi / noise + torch.eye(33, dtype=torch.float64))
        assert torch.allclose(posterior.means[member], there @ S @ psi.T @ model.y / noise, atol=1e-6)
        assert torch.allclose(posterior.covariances[member], there @ S @ there.T, atol=1e-8)


def test_near_points_are_correlated_within_every_member() -> None:
    x = torch.tensor([[0.3, 0.4]], dtype=torch.float64)
    covariances = fitted().posterior(torch.cat([x, x + 1e-4])).covariances
    correlation = covariances[:, 0, 1] / (covariances[:, 0, 0] * covariances[:, 1, 1]).sqrt()
    assert (correlation > 0.999).all()


def test_the_posterior_has_no_observation_noise_in_it() -> None:
    model = fitted(60, noise=0.5)
    variance = model.posterior(torch.full((1, 2), 0.5, dtype=torch.float64)).covariances.mean()
    assert float(model.noise_variance()) > 0.1
    assert float(variance) < 0.5 * float(model.noise_variance())


def test_batches_of_any_shape_agree_with_rows() -> None:
    model = fitted()
    x = torch.rand(2, 3, 2, 2, dtype=torch.float64)
    assert torch.allclose(model.posterior(x).mean[1, 2], model.posterior(x[1, 2]).mean)
    assert torch.allclose(model.posterior(x).variance[1, 2], model.posterior(x[1, 2]).variance)


def test_what_is_held_out_is_held_out_equally_often() -> None:
    left_out = held_out(8, 20, torch.Generator().manual_seed(0))
    assert (left_out.sum(0) == 2).all()
    assert (left_out.sum(1) == 5).all()
    assert not held_out(8, 7, torch.Generator().manual_seed(0)).any()


def test_training_ends_where_the_score_is_best() -> None:
    """The score looks at a copy, taken at that step: later steps do not change what is returned."""

    def log_density(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return -0.5 * (z - 3).square().sum(-1), 3 - z

    seen = {}

    def score(z: torch.Tensor) -> torch.Tensor:
        found = -(z - 0.5).square().sum()
        seen[float(found)] = z.clone()
        return found

    best, step, value = ascended(log_density, torch.zeros(1, 1), score, n_steps=400)
    assert 0 < step < 400
    assert torch.equal(best, seen[value])


def test_training_may_end_before_it_begins() -> None:
    start = torch.ones(2, 3)
    best, step, _ = ascended(lambda z: (z.sum(-1), torch.ones_like(z)), start, lambda z: -z.sum(), n_steps=50)
    assert step == 0
    assert torch.equal(best, start)


@pytest.mark.parametrize("u", [-1.5, 0.0, 2.0])
def test_a_whitened_scale_is_the_scale(u: float) -> None:
    prior = LogNormal(0.3, 0.5)
    coordinate = torch.tensor(u, dtype=torch.float64)
    assert float(whitened(prior, prior(coordinate))) == pytest.approx(u)


def test_one_network_alone_is_shown_three_quarters_of_the_data() -> None:
    left_out = held_out(1, 20, torch.Generator().manual_seed(0))
    assert int(left_out.sum()) == 5
    # from nothing it would predict as badly as the prior, -1.4 and less
    assert fitted(32, n_members=1).figures()["held_out_log_density"] > -0.5


def test_too_few_observations_to_hold_any_out_take_no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neural_linear, "ascended", lambda *_, **__: pytest.fail("nothing to judge steps by"))
    figures = fitted(7).figures()
    assert figures["n_steps"] == 0
    assert figures["held_out_log_density"] is None


def test_the_observations_of_the_kernel_are_drawn_by_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infinite_width, "KERNEL_POINTS", 9)
    model = fitted()
    first, again, other = (
        scales_of_infinite_width(model.request, model.target, torch.Generator().manual_seed(seed))
        for seed in (0, 0, 5)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_later_fit_starts_anew() -> None:
    model = fitted()
    assert all(name.startswith(DRAWS) for name in model.state())
