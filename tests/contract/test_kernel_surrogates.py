"""The surrogates with exact posteriors over networks' features and covariances keep the contract."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from botorch.acquisition.knowledge_gradient import qKnowledgeGradient
from botorch.acquisition.logei import qLogExpectedImprovement
from botorch.acquisition.max_value_entropy_search import qLowerBoundMaxValueEntropy
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.models import ModelList, SingleTaskGP

import surrogates.memberwise  # noqa: F401  keeps BoTorch from compiling a kernel in the middle
from surrogates.registry import plugin as find_plugin
from surrogates.testing.contract import SurrogateContract


class TestNngp(SurrogateContract):
    plugin = "nngp"
    is_kept_in_double = True

    @pytest.mark.parametrize("name", ["analytic", "knowledge gradient", "max-value entropy"])
    def test_acquisitions_made_for_gaussian_processes_take_it(self, name: str) -> None:
        model = self.fitted(self.request())
        x = torch.rand(3, 3, 4, dtype=torch.float64, requires_grad=True)
        if name == "analytic":
            values = LogExpectedImprovement(model, best_f=0.0)(x[:, :1])
        elif name == "knowledge gradient":
            values = qKnowledgeGradient(model, num_fantasies=2)(x)
        else:
            values = qLowerBoundMaxValueEntropy(model, candidate_set=torch.rand(50, 4, dtype=torch.float64))(
                x[:, :1]
            )
        (gradient,) = torch.autograd.grad(values.sum(), x)
        assert torch.isfinite(gradient).all()

    def test_gpytorch_gives_the_same_posterior_as_our_own_algebra(self) -> None:
        model = self.fitted(self.request())
        x = torch.rand(3, 2, 4, dtype=torch.float64)
        with torch.no_grad():
            ours, theirs = model.posterior(x), SingleTaskGP.posterior(model, x)
        assert torch.allclose(ours.mean, theirs.mean, atol=1e-6)
        assert torch.allclose(
            ours.distribution.covariance_matrix, theirs.distribution.covariance_matrix, atol=1e-6
        )

    def test_gpytorch_forgets_a_state_with_the_next(self) -> None:
        """Where noise is asked for, GPyTorch answers, out of what it kept."""
        request = self.request()
        turned = self.fitted(replace(request, train_Y=request.train_Y.flip(0)))
        asked, fresh = find_plugin("nngp").build(request), find_plugin("nngp").build(request)
        asked.load_state(self.model().state())
        x = torch.rand(3, 2, 4, dtype=torch.float64)
        with torch.no_grad():
            asked.posterior(x, observation_noise=True)
            for model in (asked, fresh):
                model.load_state(turned.state())
            found, expected = (model.posterior(x, observation_noise=True) for model in (asked, fresh))
        assert torch.allclose(found.mean, expected.mean, atol=1e-8)
        assert torch.allclose(found.variance, expected.variance, atol=1e-8)

    def test_its_figures_name_the_scales(self) -> None:
        figures = self.fitted(self.request()).figures()
        assert figures["weight_variance"] > 0
        assert len(figures["relevances"]) == 3
        assert 0 <= figures["loo_coverage_90"] <= 1


class TestNngpOfFewOptions(SurrogateContract):
    plugin = "nngp"
    is_kept_in_double = True
    options: ClassVar[dict[str, Any]] = {"ard": False, "activation": "relu", "depth": 1}


class TestStudentT(SurrogateContract):
    plugin = "student-t"

    def test_several_outcomes_enter_a_hypervolume_acquisition(self) -> None:
        request = self.request()
        models = ModelList(*(self.fitted(request, seed=seed) for seed in range(2)))
        acquisition = qLogNoisyExpectedHypervolumeImprovement(
            models, ref_point=[-2.0, -2.0], X_baseline=request.train_X[:6]
        )
        x = torch.rand(3, 2, 4, dtype=torch.float64, requires_grad=True)
        values = acquisition(x)
        (gradient,) = torch.autograd.grad(values.sum(), x)
        assert values.shape == (3,)
        assert torch.isfinite(gradient).all()
        # the front and the candidates are drawn under the same hidden scale
        for early, late in zip(acquisition.base_sampler.samplers, acquisition.sampler.samplers, strict=True):
            n = early.base_samples.shape[-2]
            assert late.base_samples.shape[-2] == n + 2
            assert torch.equal(late.base_samples[:, 0, :n], early.base_samples)

    def test_improvement_over_the_best_value_has_gradients(self) -> None:
        model = self.fitted(self.request())
        x = torch.rand(3, 2, 4, dtype=torch.float64, requires_grad=True)
        values = qLogExpectedImprovement(model, best_f=0.5)(x)
        (gradient,) = torch.autograd.grad(values.sum(), x)
        assert torch.isfinite(gradient).all()


class TestStudentTOverTheMatern(SurrogateContract):
    plugin = "student-t"
    options: ClassVar[dict[str, Any]] = {"kernel": "gp", "alpha": 1.0}


class TestLaplace(SurrogateContract):
    plugin = "laplace"
    options: ClassVar[dict[str, Any]] = {"width": 16, "n_members": 2, "n_steps": 20}

    def test_its_figures_tell_of_every_network(self) -> None:
        figures = self.fitted(self.request()).figures()
        assert 1 <= figures["n_networks"] <= 2
        assert len(figures["log_joints"]) == len(figures["noise_variances"]) == figures["n_networks"]


class TestNeuralLinear(SurrogateContract):
    plugin = "neural-linear"
    options: ClassVar[dict[str, Any]] = {"width": 64, "depth": 1, "n_members": 4, "n_steps": 50}

    def test_its_figures_tell_where_training_ended(self) -> None:
        figures = self.fitted(self.request()).figures()
        assert figures["n_steps"] <= 50
        assert len(figures["noise_variances"]) == 4


class TestDkl(SurrogateContract):
    plugin = "dkl"
    options: ClassVar[dict[str, Any]] = {"width": 16, "n_steps": 60}

    def test_its_figures_tell_whether_features_were_kept(self) -> None:
        figures = self.fitted(self.request()).figures()
        assert figures["n_networks"] == (1 if figures["n_steps"] == 0 else 4)


@pytest.mark.parametrize("name", ["nngp", "student-t", "laplace", "neural-linear", "dkl"])
def test_an_imprecise_observation_counts_less(name: str) -> None:
    contract = TestNngp()
    request = contract.request()
    wrong = request.train_Y.clone()
    wrong[4] += 5.0
    variances = torch.full_like(wrong, 1e-3)
    variances[4] = 100.0
    chosen = find_plugin(name)
    model: Any = chosen.build(replace(request, train_Y=wrong, train_Yvar=variances, options=chosen.options()))
    model.fit(torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.posterior(request.train_X[4:5]).mean
    assert float((found - request.train_Y[4]).abs()) < 1.0
