"""The formulas of the scores, against SciPy and numerical integration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from arms import arm
from botorch.posteriors import GPyTorchPosterior
from botorch.posteriors.ensemble import EnsemblePosterior
from botorch.posteriors.fully_bayesian import GaussianMixturePosterior
from botorch.utils.multi_objective.hypervolume import Hypervolume
from fit_process import Cell, Limits, data_of, fit_and_score
from gpytorch.distributions import MultivariateNormal
from hypervolume import hypervolume, nondominated, trajectory
from scipy.integrate import quad
from scipy.stats import norm, t
from score_table import markdown
from scoring import NormalMixture, predictive, scores

from surrogates.mixtures import StudentTPosterior

MIXTURE = NormalMixture(
    means=np.array([[-1.0, 0.0], [0.5, 0.0], [3.0, 0.2]]),
    sds=np.array([[0.3, 1.0], [1.0, 1.0], [0.05, 2.0]]),
    weights=np.array([0.5, 0.3, 0.2]),
)
Y = np.array([0.1, -0.7])


def test_the_crps_of_a_mixture_is_the_integral_that_defines_it() -> None:
    for i in range(2):

        def squared(x: float, i: int = i) -> float:
            share = MIXTURE.weights @ norm.cdf(x, MIXTURE.means[:, i], MIXTURE.sds[:, i])
            return (share - (x >= Y[i])) ** 2

        parts = [(-20, Y[i]), (Y[i], 2.8), (2.8, 3.2), (3.2, 20)]
        integral = sum(quad(squared, low, high, limit=200)[0] for low, high in parts)
        assert MIXTURE.crps(Y)[i] == pytest.approx(integral, rel=1e-6)


def test_the_crps_of_one_normal_is_the_known_formula() -> None:
    """Gneiting and Raftery 2007, "Strictly proper scoring rules, prediction, and estimation"."""
    one = NormalMixture(np.array([[1.0]]), np.array([[2.0]]), np.ones(1))
    z = (0.3 - 1.0) / 2.0
    expected = 2.0 * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    assert one.crps(np.array([0.3]))[0] == pytest.approx(expected)


def test_density_and_moments_of_a_mixture_are_those_of_its_parts() -> None:
    density = MIXTURE.weights @ norm.pdf(Y, MIXTURE.means, MIXTURE.sds)
    np.testing.assert_allclose(MIXTURE.log_density(Y), np.log(density))
    rng = np.random.default_rng(0)
    chosen = rng.choice(3, size=200_000, p=MIXTURE.weights)
    draws = rng.normal(MIXTURE.means[chosen, 0], MIXTURE.sds[chosen, 0])
    assert MIXTURE.mean[0] == pytest.approx(draws.mean(), abs=0.02)
    assert MIXTURE.variance[0] == pytest.approx(draws.var(), rel=0.02)


def test_a_calibrated_distribution_covers_what_it_says() -> None:
    rng = np.random.default_rng(0)
    means = rng.standard_normal(20_000)
    found = scores(
        NormalMixture(means[None, :], np.full((1, 20_000), 0.5), np.ones(1)), rng.normal(means, 0.5)
    )
    assert found["coverage_50"] == pytest.approx(0.5, abs=0.01)
    assert found["coverage_80"] == pytest.approx(0.8, abs=0.01)
    assert found["coverage_95"] == pytest.approx(0.95, abs=0.01)
    assert found["rmse"] == pytest.approx(0.5, abs=0.01)
    assert (
        found["nll"]
        == pytest.approx(found["nll_normal"])
        == pytest.approx(0.5 * np.log(2 * np.pi * np.e / 4), abs=0.02)
    )


def test_every_kind_of_posterior_becomes_a_mixture_with_the_noise_on_top() -> None:
    mean, variance = torch.tensor([0.5, -1.0]).double(), torch.tensor([0.04, 0.09]).double()
    gaussian = GPyTorchPosterior(MultivariateNormal(mean, torch.diag(variance)))
    found = predictive(gaussian, 0.01)
    np.testing.assert_allclose(found.means, mean[None])
    np.testing.assert_allclose(found.sds**2, variance[None] + 0.01)

    several = GaussianMixturePosterior(
        MultivariateNormal(torch.stack([mean, -mean]), torch.diag_embed(torch.stack([variance, variance])))
    )
    found = predictive(several, 0.0)
    np.testing.assert_allclose(found.means, torch.stack([mean, -mean]))
    np.testing.assert_allclose(found.weights, 0.5)

    members = EnsemblePosterior(
        torch.stack([mean, -mean])[..., None], weights=torch.tensor([3.0, 1.0]).double()
    )
    found = predictive(members, 0.25)
    np.testing.assert_allclose(found.sds, 0.5)
    np.testing.assert_allclose(found.mean, 0.5 * mean)


def test_a_posterior_that_can_only_be_sampled_is_sampled() -> None:
    class Draws:
        def rsample(self, shape: torch.Size) -> torch.Tensor:
            return 2.0 + torch.randn(*shape, 3, 1, dtype=torch.float64)

    found = predictive(Draws(), 0.5, seed=1)
    assert found.means.shape == (256, 3)
    np.testing.assert_allclose(found.mean, 2.0, atol=0.3)
    np.testing.assert_allclose(found.variance, 1.5, atol=0.4)
    assert np.array_equal(found.means, predictive(Draws(), 0.5, seed=1).means)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_the_hypervolume_is_that_of_botorch(m: int) -> None:
    points = np.random.default_rng(m).random((30, m))
    reference = np.full(m, 0.2)
    front = nondominated(points[(points > reference).all(axis=1)])
    expected = Hypervolume(torch.as_tensor(reference)).compute(torch.as_tensor(front))
    assert hypervolume(points, reference) == pytest.approx(expected)
    steps = trajectory(points, reference)
    assert steps == sorted(steps)
    assert steps[11] == pytest.approx(hypervolume(points[:12], reference))


def test_no_point_above_the_reference_has_no_volume() -> None:
    assert hypervolume(np.zeros((3, 2)), np.ones(2)) == 0
    assert trajectory(np.array([[0.0, 0.0], [2.0, 3.0], [2.0, 3.0]]), np.ones(2)) == [0.0, 2.0, 2.0]


def test_outputs_are_standardised_by_the_training_part_and_larger_is_better() -> None:
    data = data_of("branin", 30, 4)
    assert data.train_y.mean() == pytest.approx(0)
    assert data.train_y.std(ddof=1) == pytest.approx(1)
    assert data.test_y.shape == (300,)
    # of a function to be minimised, a deep valley is rarer than a high wall
    assert data.test_y.min() < -2 < data.test_y.max() < 2
    assert np.array_equal(data.test_y, data_of("branin", 30, 4).test_y)


def test_a_fit_is_scored_and_timed() -> None:
    cell = Cell(arm=arm("surrogates.gp.plugin:plugin"), problem="hartmann6", n=40, seed=0)
    threads = torch.get_num_threads()
    found = fit_and_score(cell, Limits(seconds=60, threads=threads, device="cpu"))
    assert 0 < found["rmse"] < 1.2
    assert found["n_members"] == 1
    assert found["fit_seconds"] > 0


def test_the_table_reports_means_and_failures() -> None:
    good = {"problem": "branin", "n": 20, "surrogate": "gp", "seed": 0} | dict.fromkeys(
        ["rmse", "nll", "nll_normal", "crps", "coverage_50", "coverage_80", "coverage_95", "fit_seconds"], 0.5
    )
    records = [
        good | {"megabytes": 10.0},
        good | {"megabytes": 20.0, "seed": 1, "rmse": 0.7},
        {"problem": "branin", "n": 20, "surrogate": "other", "seed": 0, "error": "FitDiverged: no | way"},
    ]
    text = markdown(records, labels=["gp", "other"], problems=["branin"])
    assert "| 20 | gp | 2 | 0.600 | 0.50 |" in text
    assert "| 20 | other | 0 (1 failed: FitDiverged: no / way) | - |" in text


def test_what_a_hidden_scale_mixes_is_scored_as_a_mixture() -> None:
    scale = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
    posterior = StudentTPosterior(torch.tensor([0.0, 1.0], dtype=torch.float64), scale, degrees=5.0)
    found = predictive(posterior, 0.0)
    y = np.array([0.3, 4.0])
    expected = [t.logpdf(0.3, 5.0), t.logpdf(4.0, 5.0, 1.0, 2.0)]
    assert found.log_density(y) == pytest.approx(expected, abs=0.01)
