"""The surrogates with exact posteriors over networks' features and covariances keep the contract."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from botorch.acquisition.knowledge_gradient import qKnowledgeGradient
from botorch.acquisition.max_value_entropy_search import qLowerBoundMaxValueEntropy
from botorch.models import SingleTaskGP

from surrogates.testing.contract import SurrogateContract


class TestNngp(SurrogateContract):
    plugin = "nngp"

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

    def test_its_figures_name_the_scales(self) -> None:
        figures = self.fitted(self.request()).figures()
        assert figures["weight_variance"] > 0
        assert len(figures["relevances"]) == 3
        assert 0 <= figures["loo_coverage_90"] <= 1


class TestNngpOfFewOptions(SurrogateContract):
    plugin = "nngp"
    options: ClassVar[dict[str, Any]] = {"ard": False, "activation": "relu", "depth": 1}
