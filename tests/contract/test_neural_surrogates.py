"""The neural surrogates keep the contract, and promises of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from surrogates.errors import FitRejected
from surrogates.testing.contract import SurrogateContract


class TestHmc(SurrogateContract):
    plugin = "hmc"
    # what the contract asks does not need a converged sampler; tests/slow has the truths that do
    options: ClassVar[dict[str, Any]] = {
        "width": 16,
        "depth": 1,
        "n_chains": 4,
        "n_warmup": 30,
        "n_draws": 24,
        "n_members": 64,
        "max_r_hat": 10.0,
    }

    def test_chains_that_disagree_are_rejected_with_the_figure(self) -> None:
        request = self.request()
        strict = request.options.model_copy(update={"max_r_hat": 1.0001})
        with pytest.raises(FitRejected, match="R-hat"):
            self.fitted(replace(request, options=strict))

    def test_its_figures_say_how_well_the_chains_mixed(self) -> None:
        figures = self.model().figures()
        assert figures["r_hat"] >= 0.9
        assert figures["effective_sample_size"] > 0
        assert 0 < figures["acceptance"] <= 1


class TestEnsemble(SurrogateContract):
    plugin = "ensemble"
    options: ClassVar[dict[str, Any]] = {"width": 32, "n_members": 64, "max_steps": 40}

    def test_members_disagree_more_away_from_the_data(self) -> None:
        request = self.request()
        model = self.fitted(request)
        with torch.no_grad():
            spread = model.posterior(request.train_X).variance.mean()
            away = model.posterior(1.5 - request.train_X).variance.mean()
        assert away > 2 * spread

    def test_its_figures_say_how_long_it_trained(self) -> None:
        assert 0 <= self.model().figures()["n_steps"] <= 40


class TestSgmcmc(SurrogateContract):
    plugin = "sgmcmc"
    options: ClassVar[dict[str, Any]] = {"width": 32, "depth": 1, "n_steps": 150, "n_members": 64}

    def test_steps_in_cycles_learn_too(self) -> None:
        request = self.request()
        cycles = request.options.model_copy(
            update={"schedule": "cyclical", "exploration": 0.5, "n_steps": 200}
        )
        with torch.no_grad():
            mean = self.fitted(replace(request, options=cycles)).posterior(request.train_X).mean
        assert (mean - request.train_Y).pow(2).mean() < 0.5 * request.train_Y.pow(2).mean()
