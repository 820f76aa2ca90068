"""Closed forms against finite differences and against GPyTorch and BoTorch."""

from __future__ import annotations

import gpytorch
import numpy as np
import pytest
import torch
from botorch.acquisition.analytic import _log_ei_helper
from gpytorch.likelihoods import GaussianLikelihood
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_t

from surrogates.errors import FitDiverged
from surrogates.numerics.exact_gp import (
    LENGTHSCALE_SD,
    LOW_NOISE,
    SHARED_DEGREES,
    SHARED_SD,
    SHARED_SHIFT_SD,
    Hyperparameters,
    Likelihood,
    SharedPrior,
    _FewGroups,
    _ManyGroups,
    condition,
    fit_map,
    lengthscale_prior_mean,
)
from surrogates.numerics.fit_rows import drawn_rows
from surrogates.numerics.log_ei import log_ei, log_ei_with_gradient, log_h
from surrogates.numerics.output_transform import OutputTransform, fit_output_transform

GROUPS = ((0,), (1, 2), (3,))


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.random((25, 4))
    y = np.sin(5 * X[:, 0]) + X[:, 1] ** 2
    return X, (y - y.mean()) / y.std()


def numerical_gradient(f, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    return np.array([(f(x + step * e) - f(x - step * e)) / (2 * step) for e in np.eye(len(x))])


def test_the_gradient_of_the_likelihood_agrees_with_finite_differences(data) -> None:
    X, y = data
    likelihood = Likelihood(X, y, np.full(25, 0.01), GROUPS, LOW_NOISE)
    theta = np.array([-1.0, -0.3, 0.4, -4.0])
    value, gradient = likelihood(theta)
    assert np.isfinite(value)
    assert gradient == pytest.approx(numerical_gradient(lambda t: likelihood(t)[0], theta), rel=1e-5)


@pytest.fixture
def wide_data() -> tuple[np.ndarray, np.ndarray]:
    """Forty inputs, of which three matter."""
    rng = np.random.default_rng(3)
    X = rng.random((60, 40))
    y = np.sin(3 * X[:, 4]) + X[:, 20] - X[:, 33] ** 2
    return X, (y - y.mean()) / y.std()


def test_the_gradient_for_many_groups_agrees_with_finite_differences(wide_data) -> None:
    X, y = wide_data
    groups = ((0, 1, 2), (3,), *((i,) for i in range(4, 40)))
    likelihood = Likelihood(X, y, np.full(60, 0.01), groups, LOW_NOISE)
    theta = np.r_[np.random.default_rng(0).normal(1.0, 0.5, len(groups)), -4.0]
    _, gradient = likelihood(theta)
    assert gradient == pytest.approx(
        numerical_gradient(lambda t: likelihood(t)[0], theta), rel=1e-4, abs=1e-5
    )


def test_distances_by_products_of_matrices_are_the_distances_by_pair(wide_data) -> None:
    X, _ = wide_data
    groups = ((0, 1, 2), *((i,) for i in range(3, 40)))
    few, many = _FewGroups(X, groups), _ManyGroups(X, groups)
    inverse_square = np.random.default_rng(1).uniform(0.1, 4.0, len(groups))
    assert many.distance(inverse_square) == pytest.approx(few.distance(inverse_square), abs=1e-7)
    weights = np.random.default_rng(2).normal(size=(60, 60))
    weights += weights.T
    assert many.gradient(inverse_square, weights) == pytest.approx(few.gradient(inverse_square, weights))


def test_the_shared_prior_is_a_multivariate_t() -> None:
    prior = SharedPrior(15)
    scale = SHARED_SD**2 * np.eye(15) + SHARED_SHIFT_SD**2
    law = multivariate_t(np.full(15, lengthscale_prior_mean(15)), scale, df=SHARED_DEGREES * 15)
    left, right = np.random.default_rng(0).normal(size=(2, 15))
    assert 0.5 * (prior(left)[0] - prior(right)[0]) == pytest.approx(law.logpdf(right) - law.logpdf(left))
    expected = numerical_gradient(lambda t: 0.5 * prior(t)[0], left)
    assert prior(left)[1] == pytest.approx(expected, rel=1e-5)


def test_few_groups_keep_independent_priors_and_one_start() -> None:
    X = np.random.default_rng(0).random((12, 11))
    y = X[:, 0] - 0.5
    assert not Likelihood(X, y, np.zeros(12), tuple((i,) for i in range(10)), LOW_NOISE).has_many
    assert Likelihood(X, y, np.zeros(12), tuple((i,) for i in range(11)), LOW_NOISE).has_many


@pytest.mark.parametrize("start_at", [-0.3, -2.0])
def test_in_many_dimensions_it_learns_from_wherever_it_starts(wide_data, start_at: float) -> None:
    """Short lengthscales are a resting point where nothing is learned; an earlier fit may have ended there."""
    X, y = wide_data
    groups = tuple((i,) for i in range(40))
    likelihood = Likelihood(X[:50], y[:50], np.zeros(50), groups, LOW_NOISE)
    found = fit_map(likelihood, Hyperparameters(np.full(40, start_at), -7.0))
    mean, _ = condition(X[:50], y[:50], found, groups).predict(X[50:])
    assert np.mean((mean - y[50:]) ** 2) < 0.1


def test_the_posterior_agrees_with_gpytorch(data) -> None:
    X, y = data
    found = condition(X, y, Hyperparameters(np.array([-1.0, -0.3, 0.4]), -4.0), GROUPS)
    kernel = gpytorch.kernels.MaternKernel(nu=2.5, ard_num_dims=4).double()
    kernel.lengthscale = torch.as_tensor(found.lengthscales)[None]
    K = kernel(torch.as_tensor(X)).to_dense() + np.exp(-4.0) * torch.eye(25).double()
    x = np.random.default_rng(1).random((7, 4))
    k = kernel(torch.as_tensor(x), torch.as_tensor(X)).to_dense()
    solve = torch.linalg.solve(K, torch.as_tensor(y - found.mean))
    mean, variance = found.predict(x)
    assert mean == pytest.approx((found.mean + k @ solve).detach().numpy(), abs=1e-9)
    expected = 1 - (k * torch.linalg.solve(K, k.T).T).sum(1)
    assert variance == pytest.approx(expected.detach().numpy(), abs=1e-9)


def test_the_map_is_where_the_gradient_of_an_independent_marginal_likelihood_vanishes(data) -> None:
    X, y = data
    groups = tuple((i,) for i in range(4))
    found = fit_map(Likelihood(X, y, np.zeros(25), groups, LOW_NOISE), Hyperparameters.at_prior(4, LOW_NOISE))
    log_l = torch.tensor(found.log_lengthscales, requires_grad=True)
    log_s2 = torch.tensor(found.log_noise, requires_grad=True)
    diff = (torch.as_tensor(X)[:, None] - torch.as_tensor(X)[None]) / log_l.exp()
    r = (diff.pow(2).sum(-1) + 1e-30).sqrt()
    s = 5**0.5 * r
    K = (1 + s + s**2 / 3) * (-s).exp() + log_s2.exp() * torch.eye(25).double()
    ones, target = torch.ones(25).double(), torch.as_tensor(y)
    mean = (torch.linalg.solve(K, ones) @ target) / (torch.linalg.solve(K, ones).sum() + 1e-4)
    residual = target - mean
    nll = 0.5 * (residual @ torch.linalg.solve(K, residual) + 1e-4 * mean**2 + torch.logdet(K))
    prior = (
        0.5 * (((log_l - lengthscale_prior_mean(4)) / LENGTHSCALE_SD) ** 2).sum()
        + 0.5 * ((log_s2 + 7) / 2) ** 2
    )
    (nll + prior).backward()
    assert float(log_l.grad.abs().max()) < 0.05
    assert GaussianLikelihood is not None


def test_gradients_of_mean_variance_and_log_ei_agree_with_finite_differences(data) -> None:
    X, y = data
    posterior = condition(X, y, Hyperparameters(np.array([-0.5, -0.3, 0.4]), -3.0), GROUPS)
    x = np.random.default_rng(2).random((1, 4))
    mean, variance, mean_gradient, variance_gradient = posterior.predict_with_gradients(x)
    at = lambda i: lambda v: posterior.predict(v[None])[i][0]  # noqa: E731
    assert mean_gradient[0] == pytest.approx(numerical_gradient(at(0), x[0]), rel=1e-5, abs=1e-8)
    assert variance_gradient[0] == pytest.approx(numerical_gradient(at(1), x[0]), rel=1e-4, abs=1e-8)
    _, gradient = log_ei_with_gradient(mean, variance, mean_gradient, variance_gradient, 1.0)
    expected = numerical_gradient(lambda v: log_ei(*posterior.predict(v[None]), 1.0)[0], x[0])
    assert gradient[0] == pytest.approx(expected, rel=1e-4, abs=1e-7)


@given(st.floats(-1e7, 30))
def test_log_h_agrees_with_botorch_everywhere(z: float) -> None:
    mine = log_h(np.array([z]))[0]
    theirs = float(_log_ei_helper(torch.tensor([z], dtype=torch.float64))[0])
    assert mine == pytest.approx(theirs, rel=1e-7, abs=1e-9)


def test_an_indefinite_covariance_diverges_with_a_named_error() -> None:
    X = np.zeros((3, 1))
    with pytest.raises(FitDiverged):
        condition(X, np.array([np.nan, 0.0, 1.0]), Hyperparameters(np.zeros(1), -14.0), ((0,),))


@pytest.mark.parametrize(
    "y",
    [
        np.array([1e12, 2e12, 5e12, 1e12]),
        np.full(5, 3.0),
        np.array([1e-300, 2e-300, 3e-300, 9e-300]),
        np.array([1.0]),
        np.array([1e200, -1e200, 0.0, 3.0]),
        np.exp(np.random.default_rng(0).normal(size=50) * 2),
    ],
)
def test_the_output_transform_is_finite_monotone_and_invertible(y: np.ndarray) -> None:
    transform = fit_output_transform(y)
    t = transform(y)
    assert np.all(np.isfinite(t))
    assert np.all(np.diff(t[np.argsort(y)]) >= 0)
    assert transform.inverse(t) == pytest.approx(y, rel=1e-6, abs=1e-12 * np.abs(y).max())
    mean, sd = transform.predicted(t, np.full(len(y), 0.1))
    assert np.all(np.isfinite(mean))
    assert np.all(sd >= 0)


def test_rows_to_fit_are_the_best_third_and_others_drawn_by_the_generator() -> None:
    y = torch.arange(60, dtype=torch.float64)
    first, again, other = (drawn_rows(y, 30, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for rows in (first, other):
        assert rows[-10:].tolist() == list(range(50, 60))
        assert len(set(rows.tolist())) == 30
    assert drawn_rows(y, 60, torch.Generator()).tolist() == list(range(60))


@pytest.mark.parametrize("power", [None, 0.0, 0.4, 1.0, 2.0])
def test_the_slope_of_the_output_transform_is_exact(power: float | None) -> None:
    transform = OutputTransform(shift=2.0, scale=3.0, power=power, shift2=0.1, scale2=0.5)
    y = np.array([-200.0, -7.0, 1.9, 2.0, 2.1, 9.0, 400.0])
    step = 1e-5 * np.maximum(1.0, np.abs(y))
    slope = (transform(y + step) - transform(y - step)) / (2 * step)
    assert np.sqrt(transform.variances(np.ones(7), y)) == pytest.approx(slope, rel=1e-5)


def test_known_noise_far_from_the_mean_is_exact() -> None:
    transform = OutputTransform(shift=0.0, scale=1.0, power=0.0, shift2=0.0, scale2=1.0)
    y = np.array([-1e3, 1e3])
    assert transform.variances(np.ones(2), y) == pytest.approx([1001.0**2, 1001.0**-2], rel=1e-12)
