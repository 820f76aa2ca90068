"""The Gaussian processes with other priors and with warped inputs keep the contract, and promises of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.models import SingleTaskGP
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior

from surrogates.encoding import Encoding
from surrogates.errors import FitDiverged
from surrogates.gp.options import GpOptions
from surrogates.gp.variants import VariantGP
from surrogates.numerics.exact_gp import LOW_NOISE, Hyperparameters, Likelihood, column_lengthscales
from surrogates.parameters import Categorical, Float
from surrogates.protocol import BuildRequest
from surrogates.space import SearchSpace
from surrogates.testing.contract import SurrogateContract


def requested(X: torch.Tensor, y: torch.Tensor, **options: Any) -> BuildRequest:
    """y (n,) standardised; X (n, d) of numbers."""
    space = SearchSpace(parameters=tuple(Float(name=f"x{i}", low=0, high=1) for i in range(X.shape[1])))
    return BuildRequest(
        train_X=X,
        train_Y=((y - y.mean()) / y.std())[:, None],
        train_Yvar=None,
        encoding=Encoding(space),
        options=GpOptions(**options),
    )


def points(n: int, d: int, *, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestPaperGp(SurrogateContract):
    plugin = "gp"
    options: ClassVar[dict[str, Any]] = {"prior": "paper"}

    def test_it_is_the_model_of_the_paper(self) -> None:
        """BoTorch 0.8.5's SingleTaskGP, built by hand: the same objective of the fit and the same posterior."""
        request = self.request()
        model = self.fitted(request)
        by_hand = SingleTaskGP(
            request.train_X,
            request.train_Y,
            likelihood=GaussianLikelihood(
                noise_prior=GammaPrior(1.1, 0.05),
                noise_constraint=GreaterThan(1e-4, transform=None, initial_value=2.0),
            ),
            covar_module=ScaleKernel(
                MaternKernel(nu=2.5, ard_num_dims=4, lengthscale_prior=GammaPrior(3.0, 6.0)),
                outputscale_prior=GammaPrior(2.0, 0.15),
            ),
            outcome_transform=None,
        )
        by_hand.covar_module.base_kernel.lengthscale = model.covar_module.base_kernel.lengthscale.detach()
        by_hand.covar_module.outputscale = model.covar_module.outputscale.detach()
        by_hand.likelihood.noise = model.likelihood.noise.detach()
        by_hand.mean_module.constant = model.mean_module.constant.detach()
        values = []
        for each in (model, by_hand):
            each.train()
            objective = ExactMarginalLogLikelihood(each.likelihood, each)
            values.append(objective(each(*each.train_inputs), each.train_targets).item())
            each.eval()
        assert values[0] == pytest.approx(values[1], abs=1e-9)
        x = points(6, 4)
        with torch.no_grad():
            ours, theirs = model.posterior(x), by_hand.posterior(x)
        assert torch.allclose(ours.mean, theirs.mean, atol=1e-6)
        assert torch.allclose(ours.variance, theirs.variance, atol=1e-6)


class TestSaasGp(SurrogateContract):
    plugin = "gp"
    options: ClassVar[dict[str, Any]] = {"prior": "saas"}

    def test_it_finds_the_three_of_fifty_inputs_that_matter(self) -> None:
        X = points(100, 50)
        y = torch.sin(4 * X[:, 7]) + 2 * X[:, 23] - (2 * X[:, 41] - 1) ** 2
        model = self.fitted(requested(X, y, prior="saas"))
        lengthscales = model.figures()["lengthscales"]
        three = sorted(lengthscales, key=lengthscales.__getitem__)[:3]
        assert set(three) == {"x7", "x23", "x41"}
        others = min(value for name, value in lengthscales.items() if name not in three)
        assert others > 5 * max(lengthscales[name] for name in three)


class TestWarpedGp(SurrogateContract):
    plugin = "gp"
    options: ClassVar[dict[str, Any]] = {"warp": True}

    def test_it_recovers_what_happens_at_one_end_of_a_range(self) -> None:
        def function(x: torch.Tensor) -> torch.Tensor:
            logarithm = torch.log(x + 0.005)
            return 3 * torch.sin(logarithm[:, 0]) + logarithm[:, 1]

        X, test = points(40, 2), points(200, 2, seed=9)
        y = function(X)
        errors = {}
        for warp in (True, False):
            model = self.fitted(requested(X, y, warp=warp))
            with torch.no_grad():
                mean = model.posterior(test).mean[:, 0]
            errors[warp] = float((mean - (function(test) - y.mean()) / y.std()).square().mean().sqrt())
        assert errors[True] < 0.5 * errors[False]

    def test_the_choices_of_a_category_share_a_lengthscale(self) -> None:
        model = self.fitted(self.request())
        lengthscales = model.figures()["lengthscales"]
        assert lengthscales["c=a"] == lengthscales["c=b"]
        assert model.covar_module.raw_lengthscale.shape == (1, 3)

    def test_categories_are_not_warped(self) -> None:
        assert set(self.fitted(self.request()).figures()["warps"]) == {"x", "y"}

    def test_outside_of_the_range_it_goes_on(self) -> None:
        model = self.fitted(self.request())
        inside, outside = torch.ones(1, 4).double(), torch.full((1, 4), 1.0 + 1e-9).double()
        with torch.no_grad():
            assert torch.allclose(model.posterior(inside).mean, model.posterior(outside).mean, atol=1e-4)


@pytest.mark.parametrize("n_choices", [0, 3])
@pytest.mark.parametrize("d", [4, 15])
def test_the_default_prior_is_that_of_the_closed_form(d: int, n_choices: int) -> None:
    """The two objectives differ by a constant, whatever the hyperparameters; choices share a lengthscale."""
    X = points(25, d)
    request = requested(X, torch.sin(5 * X[:, 0]) + X[:, 1])
    if n_choices:
        numbers = tuple(Float(name=f"x{i}", low=0, high=1) for i in range(d - n_choices))
        choice = Categorical(name="c", choices=tuple("abcdefgh"[:n_choices]))
        request = replace(request, encoding=Encoding(SearchSpace(parameters=(*numbers, choice))))
    groups = request.encoding.groups
    model = VariantGP(replace(request, options=GpOptions(warp=False)))
    likelihood = Likelihood(X.numpy(), request.train_Y[:, 0].numpy(), 0 * X[:, 0].numpy(), groups, LOW_NOISE)
    differences = []
    for seed in range(3):
        log_l = torch.randn(len(groups), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        at = Hyperparameters(log_l.numpy(), -3.0 - seed)
        model.covar_module.lengthscale = torch.as_tensor(column_lengthscales(at, groups))[None]
        model.likelihood.noise = torch.tensor(at.log_noise).exp()
        with torch.no_grad():
            K = model.covar_module(X).to_dense() + model.likelihood.noise * torch.eye(25)
        inverse = torch.linalg.inv(K)
        model.mean_module.constant = float(inverse.sum(0) @ request.train_Y[:, 0] / (inverse.sum() + 1e-4))
        model.train()
        objective = ExactMarginalLogLikelihood(model.likelihood, model)
        value = 25 * objective(model(*model.train_inputs), model.train_targets).item()
        differences.append(value + likelihood(at.flat())[0] - 0.5e-4 * model.mean_module.constant.item() ** 2)
    assert differences == pytest.approx([differences[0]] * 3, abs=1e-3)


def test_a_variant_of_many_observations_is_fitted_on_some_and_sees_all() -> None:
    X = points(150, 2)
    model = VariantGP(requested(X, torch.sin(5 * X[:, 0]), prior="paper", fit_points=40))
    model.fit(torch.Generator().manual_seed(0))
    assert len(model.train_targets) == 150
    with torch.no_grad():
        assert (model.posterior(X).mean - model.request.train_Y).abs().max() < 0.1


def test_a_fit_that_fails_climbs_every_rung_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from botorch.exceptions.errors import ModelFittingError

    def failing(*args: Any, **kwargs: Any) -> None:
        raise ModelFittingError("not today")

    X = points(10, 2)
    fitted = VariantGP(requested(X, X[:, 0], prior="paper"))
    model = VariantGP(replace(requested(X, X[:, 0], prior="paper"), warm=fitted.state()))
    monkeypatch.setattr("surrogates.gp.variants.fit_gpytorch_mll", failing)
    with pytest.raises(FitDiverged):
        model.fit(torch.Generator().manual_seed(0))
    assert [rung.split(":")[0] for rung in model.rungs] == ["warm", "start", "drawn starts"]


@pytest.mark.parametrize("options", [{}, {"prior": "paper"}, {"prior": "saas"}, {"warp": True}])
def test_single_precision_answers_double_precision_acquisitions(options: dict[str, Any]) -> None:
    from surrogates.registry import plugin

    X = points(20, 3)
    request = requested(X, torch.sin(4 * X[:, 0]) + X[:, 1], dtype="float32", **options)
    model: Any = plugin("gp").build(request)
    model.fit(torch.Generator().manual_seed(0))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.train_inputs[0].dtype == torch.float32
    acquisition = qLogNoisyExpectedImprovement(model, X_baseline=X)
    x = points(3, 6, seed=1).reshape(3, 2, 3).requires_grad_()
    values = acquisition(x)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert values.dtype == gradient.dtype == torch.float64
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"prior": "paper"}, {"prior": "saas"}, {"warp": True}])
def test_on_a_gpu_it_says_the_same_as_on_the_cpu(options: dict[str, Any], dtype: str) -> None:
    from surrogates.registry import plugin

    X = points(30, 3)
    request = requested(X, torch.sin(4 * X[:, 0]) + X[:, 1], dtype=dtype, **options)
    here: Any = plugin("gp").build(request)
    here.fit(torch.Generator().manual_seed(0))
    there: Any = plugin("gp").build(replace(request, device="cuda"))
    there.load_state(here.state())
    assert {parameter.device.type for parameter in there.parameters()} == {"cuda"}
    x = points(5, 3, seed=1)
    with torch.no_grad():
        near, far = here.posterior(x), there.posterior(x)
    assert far.mean.device.type == "cpu"
    assert torch.allclose(near.mean, far.mean, atol=1e-6 if dtype == "float64" else 1e-2)
    away: Any = plugin("gp").build(replace(request, device="cuda"))
    away.fit(torch.Generator().manual_seed(0))
    acquisition = qLogNoisyExpectedImprovement(away, X_baseline=X)
    points_asked = points(3, 6, seed=1).reshape(3, 2, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(acquisition(points_asked).sum(), points_asked)
    assert torch.isfinite(gradient).all()
