"""Hypervolume by scalarisations, beside BoTorch's exact boxes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.exceptions.errors import UnsupportedError
from botorch.models import ModelListGP, SingleTaskGP
from botorch.sampling.normal import SobolQMCNormalSampler
from botorch.utils.multi_objective.hypervolume import Hypervolume
from botorch.utils.multi_objective.pareto import is_non_dominated
from scipy.stats import spearmanr
from torch import Tensor

from surrogates.hypervolume import ScalarisedLogNEHVI, directions, unit_volume


def objectives(X: Tensor, n_objectives: int) -> Tensor:
    """To be maximised, at odds with each other."""
    centres = torch.linspace(0.1, 0.9, n_objectives, dtype=torch.float64)
    return torch.stack([-(X - centre).square().sum(-1) for centre in centres], dim=-1)


def points(n: int, d: int, *, seed: int) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fitted(n_outcomes: int) -> tuple[ModelListGP, Tensor]:
    X = points(16, 3, seed=1)
    Y = objectives(X, n_outcomes)
    models = [SingleTaskGP(X, Y[:, [i]], torch.full_like(Y[:, [i]], 1e-4)) for i in range(n_outcomes)]
    return ModelListGP(*models), X


def both(n_objectives: int, **arguments: Any) -> tuple[Any, Any]:
    """Ours and BoTorch's, from the same posterior samples."""
    model, X = fitted(n_objectives)
    reference = torch.full((n_objectives,), -1.2, dtype=torch.float64)
    made = []
    for kind in (ScalarisedLogNEHVI, qLogNoisyExpectedHypervolumeImprovement):
        sampler = SobolQMCNormalSampler(torch.Size([64]), seed=3)
        made.append(kind(model, reference, X, sampler=sampler, prune_baseline=True, **arguments))
    return made[0], made[1]


@pytest.mark.parametrize("n_objectives", [2, 3, 4])
def test_the_volume_is_the_mean_over_directions(n_objectives: int) -> None:
    values = 3.0 * points(12, n_objectives, seed=2)
    w = directions(1, 2**15, n_objectives)[0]
    scalarised = (values[:, None, :] / w).amin(-1).amax(0)
    estimate = unit_volume(n_objectives) * (scalarised**n_objectives).mean()
    exact = Hypervolume(torch.zeros(n_objectives, dtype=torch.float64)).compute(
        values[is_non_dominated(values)]
    )
    assert float(estimate) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(("n_objectives", "q"), [(2, 1), (2, 2), (3, 1), (3, 2), (5, 1)])
def test_expected_improvements_are_those_of_the_boxes(n_objectives: int, q: int) -> None:
    ours, exact = both(n_objectives)
    X = points(60 * q, 3, seed=4).reshape(60, q, 3)
    with torch.no_grad():
        mine, theirs = ours(X).exp(), exact(X).exp()
    best = theirs.argsort(descending=True)[:15]
    torch.testing.assert_close(mine[best], theirs[best], rtol=0.15, atol=0.0)
    assert spearmanr(mine[best], theirs[best]).statistic > 0.95


def test_pending_points_count_as_reached() -> None:
    ours, exact = both(2)
    X = points(40, 3, seed=4)[:, None, :]
    with torch.no_grad():
        first = X[ours(X).argmax()]
        before = ours(first[None]).exp()
        for acquisition in (ours, exact):
            acquisition.set_X_pending(first)
        mine, theirs = ours(X).exp(), exact(X).exp()
        again = ours(first[None]).exp()
    assert float(again) < 0.05 * float(before)
    best = theirs.argsort(descending=True)[:10]
    torch.testing.assert_close(mine[best], theirs[best], rtol=0.15, atol=0.0)


def test_what_is_not_feasible_counts_for_little() -> None:
    constraints = [lambda samples: samples[..., 0] + 0.3]
    ours, exact = both(2, constraints=constraints)
    X = points(60, 3, seed=4)[:, None, :]
    with torch.no_grad():
        mine, theirs = ours(X).exp(), exact(X).exp()
    best = theirs.argsort(descending=True)[:10]
    torch.testing.assert_close(mine[best], theirs[best], rtol=0.15, atol=0.0)
    unfeasible = objectives(X[:, 0], 2)[:, 0] > -0.2
    assert unfeasible.any()
    assert float(mine[unfeasible].max()) < 0.05 * float(mine.max())


def test_there_is_a_slope_where_no_sample_improves() -> None:
    ours, _ = both(2)
    _, X = fitted(2)
    # observed, so hardly uncertain, and the worst of them
    worst = X[objectives(X, 2).sum(-1).argmin()].clone().requires_grad_()
    value = ours(worst[None, None, :])
    (slope,) = torch.autograd.grad(value.sum(), worst)
    assert value.item() < -15.0
    with torch.no_grad():
        further = ours((worst + 0.05 * slope / slope.norm())[None, None, :])
    assert further.item() > value.item() + 0.005


def test_nothing_above_the_reference_is_no_baseline() -> None:
    model, X = fitted(2)
    reference = torch.full((2,), 5.0, dtype=torch.float64)
    acquisition = ScalarisedLogNEHVI(model, reference, X, prune_baseline=True)
    with torch.no_grad():
        assert torch.isfinite(acquisition(X[:4, None, :])).all()


def test_a_constraint_far_from_met_leaves_a_slope() -> None:
    model, X = fitted(2)
    reference = torch.full((2,), -1.2, dtype=torch.float64)
    acquisition = ScalarisedLogNEHVI(
        model, reference, X, constraints=[lambda samples: samples[..., 0] + 50.0], fat=False
    )
    there = X[:3, None, :].clone().requires_grad_()
    value = acquisition(there)
    (slope,) = torch.autograd.grad(value.sum(), there)
    assert torch.isfinite(value).all()
    assert torch.isfinite(slope).all()
    assert float(slope.abs().max()) > 0.0


def test_what_it_cannot_do_is_refused() -> None:
    model, X = fitted(2)
    reference = torch.full((2,), -1.2, dtype=torch.float64)
    with pytest.raises(UnsupportedError, match="pending"):
        ScalarisedLogNEHVI(model, reference, X, incremental_nehvi=False)
    batched = SingleTaskGP(X.expand(3, -1, -1), objectives(X, 2).expand(3, -1, -1))
    with pytest.raises(UnsupportedError, match="batch"):
        ScalarisedLogNEHVI(batched, reference, X)
