"""Several surrogates averaged: samples of different outcomes know nothing of each other, and carry over."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.models import ModelList
from botorch.posteriors.posterior_list import PosteriorList
from botorch.sampling.get_sampler import get_sampler
from botorch.sampling.list_sampler import ListSampler

from surrogates.averaged import AveragedPosterior, AveragedSampler
from surrogates.encoding import Encoding
from surrogates.hypervolume import ScalarisedLogNEHVI
from surrogates.parameters import Float
from surrogates.protocol import BuildRequest
from surrogates.registry import plugin
from surrogates.space import SearchSpace

SPACE = SearchSpace(parameters=tuple(Float(name=f"x{i}", low=0, high=1) for i in range(2)))
SMALL = {"width": 16, "n_members": 16, "max_steps": 20}


def points(n: int, *, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def averaged(sign: float, *, seed: int = 0) -> Any:
    """An `auto` that averages a Gaussian process with an ensemble, one half each."""
    X = points(12)
    request = BuildRequest(
        train_X=X,
        train_Y=sign * torch.sin(5 * X[:, :1]) + X[:, 1:],
        train_Yvar=None,
        encoding=Encoding(SPACE),
        options=plugin("auto").options.model_validate(
            {"combine": "average", "candidates": ["gp", "ensemble"], "candidate_options": {"ensemble": SMALL}}
        ),
    )
    model: Any = plugin("auto").build(request)
    parts = {}
    for name in ("gp", "ensemble"):
        options = plugin(name).options.model_validate(SMALL if name == "ensemble" else {})
        part: Any = plugin(name).build(replace(request, options=options))
        part.fit(torch.Generator().manual_seed(seed))
        parts[name] = part
    state = {"choice.n": torch.tensor(12)}
    for name, part in parts.items():
        state[f"choice.weight.{name}"] = torch.tensor(0.5)
        for key, value in part.state().items():
            plain = key.removeprefix("draw.")
            state[f"draw.{name}.{plain}" if plain != key else f"{name}.{key}"] = value
    model.load_state(state)
    return model


@pytest.fixture(scope="module")
def models() -> list[Any]:
    return [averaged(1.0), averaged(-1.0, seed=1)]


def test_outcomes_that_have_nothing_in_common_are_drawn_independently(models: list[Any]) -> None:
    """In the order of the parts, both would be the Gaussian process's in the same half of the samples."""
    x = points(1, seed=5) + 0.5
    with torch.no_grad():
        posterior = PosteriorList(*(model.posterior(x) for model in models))
        correlations = []
        for seed in range(20):
            samplers = [
                get_sampler(each, torch.Size([128]), seed=10 * seed + i)
                for i, each in enumerate(posterior.posteriors)
            ]
            samples = ListSampler(*samplers)(posterior)[:, 0]
            correlations.append(torch.corrcoef(samples.T)[0, 1])
    # those of 128 independent pairs have a standard deviation of 0.09
    assert float(torch.stack(correlations).abs().max()) < 0.35


def test_parts_far_from_each_other_are_not_drawn_in_step() -> None:
    shift = [torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), 5.0, dtype=torch.float64)]
    outcomes = []
    for i in range(2):
        parts = [_normal(mean) for mean in shift]
        outcomes.append(
            AveragedSampler(torch.Size([512]), seed=i)(AveragedPosterior(parts, [0.5, 0.5]))[:, 0, 0]
        )
    assert abs(float(torch.corrcoef(torch.stack(outcomes))[0, 1])) < 0.2


def _normal(mean: torch.Tensor) -> Any:
    from botorch.posteriors import GPyTorchPosterior
    from gpytorch.distributions import MultivariateNormal

    return GPyTorchPosterior(MultivariateNormal(mean[:, 0], torch.eye(1, dtype=torch.float64)))


def test_points_added_to_a_baseline_leave_its_samples_as_they_were(models: list[Any]) -> None:
    baseline, more = points(4, seed=7), points(6, seed=8)
    model = models[0]
    with torch.no_grad():
        sampler = AveragedSampler(torch.Size([64]), seed=3)
        before = sampler(model.posterior(baseline))
        base = deepcopy(sampler)
        joint = model.posterior(torch.cat([baseline, more]))
        sampler._update_base_samples(posterior=joint, base_sampler=base)
        after = sampler(joint)
    assert torch.allclose(after[:, :4], before, atol=1e-4)


@pytest.mark.parametrize("kind", [ScalarisedLogNEHVI, qLogNoisyExpectedHypervolumeImprovement])
def test_a_hypervolume_acquisition_takes_averaged_outcomes(models: list[Any], kind: Any) -> None:
    acquisition = kind(ModelList(*models), ref_point=[-2.0, -2.0], X_baseline=points(5))
    acquisition.set_X_pending(points(2, seed=9))
    x = points(6, seed=6).reshape(3, 2, 2).requires_grad_()
    values = acquisition(x)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert values.shape == (3,)
    assert torch.isfinite(gradient).all()
