"""The Student-t process is what its name says, and tends to the Gaussian process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from botorch.sampling.get_sampler import get_sampler
from scipy import stats

from surrogates.bnn.options import NngpOptions, StudentTOptions
from surrogates.bnn.plugin import nngp, student_t
from surrogates.encoding import Encoding
from surrogates.mixtures import GaussianMixture, StudentTPosterior
from surrogates.parameters import Float
from surrogates.protocol import BuildRequest
from surrogates.space import SearchSpace

SPACE = SearchSpace(parameters=tuple(Float(name=f"x{i}", low=0, high=1) for i in range(2)))


def request(options: Any, n: int = 7) -> BuildRequest:
    X = torch.rand(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return BuildRequest(
        train_X=X,
        train_Y=torch.sin(6 * X[:, :1]),
        train_Yvar=None,
        encoding=Encoding(SPACE),
        options=options,
    )


def loaded(plugin: Any, options: Any, n: int = 7) -> Any:
    model = plugin.build(request(options, n))
    model.load_state({"coordinates": torch.linspace(-1, 0.5, model.process.n_coordinates)})
    return model


def points(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize("kernel", ["nngp", "gp"])
def test_the_evidence_is_the_density_of_a_multivariate_t(kernel: str) -> None:
    process = loaded(student_t, StudentTOptions(kernel=kernel, alpha=2.5)).process
    u = process.coordinates
    K = process.kernel(u[:-1], process.X, process.X) + process.noise(u) * torch.eye(7)
    expected = stats.multivariate_t.logpdf(
        process.y.numpy(), float(process.given.constant) * torch.ones(7).numpy(), K.numpy(), df=5.0
    )
    assert float(process.log_evidence(process.given)) == pytest.approx(expected, abs=1e-6)


def test_the_predictive_is_the_ratio_of_two_multivariate_t_densities() -> None:
    """p(f* | y) = p(f*, y) / p(y), each a multivariate t of the prior."""
    model = loaded(student_t, StudentTOptions(alpha=2.5))
    process, x = model.process, points(2)
    u, m = process.coordinates, float(process.given.constant)
    both = torch.cat([process.X, x])
    K = process.kernel(u[:-1], both, both)
    K[:7, :7] += process.noise(u) * torch.eye(7)
    posterior = model.posterior(x)
    predictive = stats.multivariate_t(
        posterior.means[0].numpy(), posterior.covariances[0].numpy(), df=posterior.degrees
    )
    for f in posterior.mean[:, 0].numpy() + torch.tensor([[0.0, 0.0], [0.3, -0.2], [-1.0, 1.5]]).numpy():
        y = [*process.y.tolist(), *f]
        joint = stats.multivariate_t.logpdf(y, [m] * 9, K.numpy(), df=5.0)
        data = stats.multivariate_t.logpdf(y[:7], [m] * 7, K[:7, :7].numpy(), df=5.0)
        assert predictive.logpdf(f) == pytest.approx(joint - data, abs=1e-5)


def test_with_a_sharp_prior_it_is_the_gaussian_process() -> None:
    x = points(5)
    gaussian = loaded(nngp, NngpOptions()).posterior(x)
    student = loaded(student_t, StudentTOptions(alpha=1e6)).posterior(x)
    assert torch.allclose(student.mean, gaussian.mean, atol=1e-6)
    assert torch.allclose(student.variance, gaussian.variance, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_samples_have_the_quantiles_and_the_covariance_of_a_multivariate_t(batch: tuple[int, ...]) -> None:
    scale = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    location = torch.tensor([0.5, -1.0], dtype=torch.float64)
    posterior = StudentTPosterior(location.expand(*batch, 2), scale.expand(*batch, 2, 2), degrees=5.0)
    samples = get_sampler(posterior, torch.Size([2**14]), seed=0)(posterior)[..., 0].reshape(2**14, -1, 2)
    for i in range(2):
        for level in (0.025, 0.25, 0.75, 0.975):
            expected = stats.t.ppf(level, 5.0, float(location[i]), float(scale[i, i].sqrt()))
            assert float(samples[:, 0, i].quantile(level)) == pytest.approx(expected, rel=0.02, abs=0.02)
    assert torch.allclose(torch.cov(samples[:, -1].T), scale * 5 / 3, rtol=0.03)
    assert torch.allclose(posterior.variance[..., 0], (scale.diagonal() * 5 / 3).expand(*batch, 2))
    # t-batches share their base samples
    assert torch.equal(samples[:, 0], samples[:, -1])


def test_base_samples_of_every_batch_may_differ() -> None:
    mean = torch.zeros(3, 2, dtype=torch.float64)
    posterior = StudentTPosterior(mean, torch.eye(2).double().expand(3, 2, 2), degrees=4.0)
    base = torch.randn(8, 3, 3, 1, dtype=torch.float64)
    samples = posterior.rsample_from_base_samples(torch.Size([8]), base)
    assert samples.shape == (8, 3, 2, 1)
    hidden = stats.norm.cdf(base[2, 1, 0, 0])
    expected = base[2, 1, 1, 0] * (4.0 / stats.chi2.ppf(hidden, 4.0)) ** 0.5
    assert float(samples[2, 1, 0, 0]) == pytest.approx(float(expected))


def test_a_mixture_has_the_moments_of_its_samples() -> None:
    means = torch.tensor([[0.0, 1.0], [3.0, 1.5]], dtype=torch.float64)
    covariances = torch.tensor([[[1.0, 0.5], [0.5, 1.0]], [[0.1, 0.0], [0.0, 0.2]]], dtype=torch.float64)
    posterior = GaussianMixture(means, covariances)
    samples = get_sampler(posterior, torch.Size([2**14]), seed=0)(posterior)[..., 0]
    assert torch.allclose(samples.mean(0), posterior.mean[:, 0], atol=0.02)
    assert torch.allclose(samples.var(0), posterior.variance[:, 0], rtol=0.03)
    # the hidden number moves both points: within one Gaussian, or within the other
    expected = covariances[:, 0, 1].mean() + torch.cov(means.T, correction=0)[0, 1]
    assert float(torch.cov(samples.T)[0, 1]) == pytest.approx(float(expected), abs=0.03)


def test_fewer_data_make_heavier_tails() -> None:
    few = loaded(student_t, StudentTOptions(), n=2).posterior(points(1))
    many = loaded(student_t, StudentTOptions(), n=40).posterior(points(1))
    assert few.degrees < many.degrees
