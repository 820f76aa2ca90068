"""Acquisitions that ask members at the candidates alone have the values of those that ask them everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.models import ModelList
from torch import Tensor

from surrogates.encoding import Encoding
from surrogates.hypervolume import ScalarisedLogNEHVI
from surrogates.members import MemberModel
from surrogates.memberwise import MemberwiseLogNEHVI, MemberwiseLogNEI, member_sampler
from surrogates.parameters import Float
from surrogates.protocol import BuildRequest
from surrogates.registry import plugin
from surrogates.space import SearchSpace

SPACE = SearchSpace(parameters=tuple(Float(name=f"x{i}", low=0, high=1) for i in range(3)))
N_MEMBERS = 16


class Waves(MemberModel):
    """Members that need no fit: random waves."""

    def __init__(self, request: BuildRequest, seed: int, n_members: int = N_MEMBERS) -> None:
        super().__init__(request)
        generator = torch.Generator().manual_seed(seed)
        self.directions = 2 * torch.randn(n_members, 3, generator=generator, dtype=torch.float64)
        self.phases = 2 * math.pi * torch.rand(n_members, 1, generator=generator, dtype=torch.float64)

    def members(self, X: Tensor) -> Tensor:
        return torch.sin(self.directions @ X.T + self.phases)

    def fit(self, generator: torch.Generator) -> None: ...

    def state(self) -> Mapping[str, Tensor]:
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None: ...

    def noise_variance(self) -> Tensor:
        return torch.zeros(1)


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def waves(seed: int, n_members: int = N_MEMBERS) -> Waves:
    X = points(9)
    options = plugin("hmc").options.model_validate({"dtype": "float64"})
    request = BuildRequest(
        train_X=X, train_Y=X[:, :1], train_Yvar=None, encoding=Encoding(SPACE), options=options
    )
    return Waves(request, seed, n_members)


def assert_alike(ours: Any, theirs: Any, *, q: int) -> None:
    """Values and slopes, before and after points are pending."""
    for pending in (None, points(2, seed=3)):
        for acquisition in (ours, theirs):
            acquisition.set_X_pending(pending)
        found = []
        for acquisition in (ours, theirs):
            X = points(7, q, seed=4).requires_grad_()
            values = acquisition(X)
            found.append((values.detach(), *torch.autograd.grad(values.sum(), X)))
        torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-8)
        assert float(found[0][0].std()) > 1e-3


@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("weight", [1.0, -2.0])
def test_noisy_improvement_is_botorchs(q: int, *, prune: bool, weight: float) -> None:
    model = waves(1)
    transform = ScalarizedPosteriorTransform(torch.tensor([weight], dtype=torch.float64))
    made = [
        kind(
            model,
            X_baseline=points(9),
            sampler=member_sampler(model, seed=5),
            posterior_transform=transform,
            prune_baseline=prune,
        )
        for kind in (MemberwiseLogNEI, qLogNoisyExpectedImprovement)
    ]
    assert_alike(made[0], made[1], q=q)


@pytest.mark.parametrize("q", [1, 2])
def test_bounded_noisy_improvement_is_botorchs(q: int) -> None:
    from botorch.acquisition.objective import GenericMCObjective

    model = ModelList(waves(1), waves(2))
    made = [
        kind(
            model,
            X_baseline=points(9),
            sampler=member_sampler(model, seed=5),
            objective=GenericMCObjective(lambda samples, X=None: samples[..., 0]),  # noqa: ARG005
            constraints=[lambda samples: samples[..., 1] - 0.5],
        )
        for kind in (MemberwiseLogNEI, qLogNoisyExpectedImprovement)
    ]
    assert_alike(made[0], made[1], q=q)


@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize("cache_pending", [False, True])
@pytest.mark.parametrize("is_bounded", [False, True])
def test_noisy_hypervolume_improvement_is_that_of_asking_everywhere(
    q: int, *, cache_pending: bool, is_bounded: bool
) -> None:
    model = ModelList(waves(1), waves(2))
    made = [
        kind(
            model,
            torch.full((2,), -0.5, dtype=torch.float64),
            points(9),
            sampler=member_sampler(model, seed=5),
            cache_pending=cache_pending,
            constraints=[lambda samples: samples[..., 1] - 0.5] if is_bounded else None,
        )
        for kind in (MemberwiseLogNEHVI, ScalarisedLogNEHVI)
    ]
    assert_alike(made[0], made[1], q=q)


def test_every_member_is_taken_once_where_all_outcomes_have_as_many() -> None:
    sampler = member_sampler(waves(1), seed=0)
    assert sampler is not None
    samples = sampler(waves(1).posterior(points(1)))
    assert samples.shape == (N_MEMBERS, 1, 1)
    expected = waves(1).posterior(points(1)).values[:, 0, 0].sort().values
    assert torch.equal(samples[:, 0, 0].sort().values, expected)
    assert member_sampler(ModelList(waves(1), waves(2, n_members=8)), seed=0) is None
