"""The contract every surrogate keeps, as a pytest class to inherit: set `plugin` to the plug-in's name."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from botorch.acquisition import qExpectedImprovement
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.exceptions.errors import InputDataError
from botorch.sampling.get_sampler import get_sampler
from pydantic import ValidationError

from surrogates.encoding import Encoding
from surrogates.errors import NotEnoughData
from surrogates.members import MemberPosterior
from surrogates.parameters import Categorical, Float
from surrogates.protocol import BuildRequest
from surrogates.registry import describe
from surrogates.registry import plugin as find_plugin
from surrogates.space import SearchSpace

SPACE = SearchSpace(
    parameters=(
        Float(name="x", low=0, high=1),
        Float(name="y", low=0, high=1),
        Categorical(name="c", choices=("a", "b")),
    )
)

_FITTED: dict[type, Any] = {}
"""The model of each contract class that its tests look at."""


class SurrogateContract:
    """Inherit as `class TestMine(SurrogateContract): plugin = "mine"`; add what is your own."""

    plugin: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    n_observations: ClassVar[int] = 20
    is_kept_in_double: ClassVar[bool] = False
    """Whether parameters are float64 whatever `dtype` is, which then says how the rest is computed."""

    def request(self, train_Y: torch.Tensor | None = None, *, n: int | None = None) -> BuildRequest:
        """Training data on a smooth function of two numbers and a category, model units."""
        generator = torch.Generator().manual_seed(0)
        encoding = Encoding(SPACE)
        n = n or (self.n_observations if train_Y is None else len(train_Y))
        X = torch.rand(n, encoding.n_features, generator=generator, dtype=torch.float64)
        X[:, 2] = (X[:, 2] > 0.5).double()
        X[:, 3] = 1 - X[:, 2]
        if train_Y is None:
            raw = torch.sin(4 * X[:, :1]) + X[:, 1:2] ** 2 + X[:, 2:3]
            train_Y = (raw - raw.mean()) / raw.std()
        chosen = find_plugin(self.plugin)
        return BuildRequest(
            train_X=X,
            train_Y=train_Y,
            train_Yvar=None,
            encoding=encoding,
            options=chosen.options.model_validate(self.options),
        )

    def fitted(self, request: BuildRequest, *, seed: int = 0) -> Any:
        """A fitted model."""
        model: Any = find_plugin(self.plugin).build(request)
        model.fit(torch.Generator().manual_seed(seed))
        return model

    def with_options(self, request: BuildRequest, **options: Any) -> BuildRequest:
        """The request with further options."""
        chosen = find_plugin(self.plugin).options.model_validate({**self.options, **options})
        return replace(request, options=chosen)

    def require_option(self, name: str) -> None:
        """Skip the test of a plug-in without this option."""
        if name not in find_plugin(self.plugin).options.model_fields:
            pytest.skip(f"has no option {name}")

    def model(self) -> Any:
        """The model of `request()`, fitted once for all tests that only look at it."""
        if type(self) not in _FITTED:
            _FITTED[type(self)] = self.fitted(self.request())
        return _FITTED[type(self)]

    def test_it_is_described_without_being_built(self) -> None:
        described = describe(find_plugin(self.plugin))
        assert described["name"] == self.plugin
        assert described["summary"]
        assert described["options_schema"]["type"] == "object"

    def test_an_unknown_option_is_refused(self) -> None:
        with pytest.raises(ValidationError):
            find_plugin(self.plugin).options.model_validate({"no_such_option": 1})

    def test_the_posterior_has_the_shapes_of_botorch(self) -> None:
        posterior = self.model().posterior(torch.rand(3, 2, 4, dtype=torch.float64))
        assert posterior.mean.shape == (3, 2, 1)
        assert posterior.variance.shape == (3, 2, 1)
        assert torch.isfinite(posterior.mean).all()
        assert (posterior.variance >= 0).all()

    def test_it_learns(self) -> None:
        request = self.request()
        with torch.no_grad():
            mean = self.model().posterior(request.train_X).mean
        residual = (mean - request.train_Y).pow(2).mean()
        assert residual < 0.5 * request.train_Y.pow(2).mean()

    def test_it_is_surer_at_the_data_than_far_away(self) -> None:
        request = self.request()
        model = self.model()
        far = request.train_X + 3.0
        with torch.no_grad():
            assert model.posterior(request.train_X).variance.mean() < model.posterior(far).variance.mean()

    def test_the_posterior_carries_gradients(self) -> None:
        if not find_plugin(self.plugin).abilities.gradients:
            pytest.skip("declares no gradients")
        model = self.model()
        x = torch.full((1, 4), 0.4, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(model.posterior(x).mean.sum(), x)
        # wide enough for models in single precision
        step = 1e-3
        for i in range(4):
            moved = x.detach().repeat(2, 1)
            moved[0, i] += step
            moved[1, i] -= step
            with torch.no_grad():
                up, down = model.posterior(moved[:1]).mean, model.posterior(moved[1:]).mean
            assert float(gradient[0, i]) == pytest.approx(float(up - down) / (2 * step), rel=2e-2, abs=2e-3)

    def test_a_posterior_transform_is_respected(self) -> None:
        model = self.model()
        x = torch.rand(4, 1, 4, dtype=torch.float64)
        transform = ScalarizedPosteriorTransform(weights=torch.tensor([-2.0], dtype=torch.float64))
        with torch.no_grad():
            plain, turned = model.posterior(x), model.posterior(x, posterior_transform=transform)
        assert torch.allclose(turned.mean, -2 * plain.mean)
        assert torch.allclose(turned.variance, 4 * plain.variance, rtol=1e-5)

    def test_the_same_generator_gives_the_same_model(self) -> None:
        request = self.request()
        x = torch.rand(5, 4, dtype=torch.float64)
        with torch.no_grad():
            first, second = (
                self.fitted(request, seed=3).posterior(x),
                self.fitted(request, seed=3).posterior(x),
            )
        assert torch.equal(first.mean, second.mean)
        assert torch.equal(first.variance, second.variance)

    def test_its_state_gives_the_same_posterior_again(self) -> None:
        request = self.request()
        model = self.model()
        other: Any = find_plugin(self.plugin).build(request)
        other.load_state(model.state())
        x = torch.rand(5, 4, dtype=torch.float64)
        with torch.no_grad():
            assert torch.allclose(other.posterior(x).mean, model.posterior(x).mean, atol=1e-8)
            assert torch.allclose(other.posterior(x).variance, model.posterior(x).variance, atol=1e-8)

    def test_its_state_survives_being_stored(self) -> None:
        # all else here runs where there is torch, BoTorch and pytest
        from safetensors.torch import load, save  # noqa: PLC0415

        request = self.request()
        model = self.model()
        stored = save({name: tensor.contiguous() for name, tensor in model.state().items()})
        other: Any = find_plugin(self.plugin).build(request)
        other.load_state(load(stored))
        x = torch.rand(5, 4, dtype=torch.float64)
        with torch.no_grad():
            assert torch.allclose(other.posterior(x).mean, model.posterior(x).mean, atol=1e-8)

    def test_a_state_replaces_what_was_computed_under_another(self) -> None:
        request = self.request()
        turned = self.fitted(replace(request, train_Y=-request.train_Y.flip(0)), seed=1)
        asked, fresh = find_plugin(self.plugin).build(request), find_plugin(self.plugin).build(request)
        asked.load_state(self.model().state())
        x = torch.rand(3, 2, 4, dtype=torch.float64)
        with torch.no_grad():
            before = asked.posterior(x).mean
            for model in (asked, fresh):
                model.load_state(turned.state())
            found, expected = asked.posterior(x), fresh.posterior(x)
        if torch.allclose(before, expected.mean, atol=1e-3):
            pytest.skip("whatever the data, the state is the same")
        assert torch.allclose(found.mean, expected.mean, atol=1e-8)
        assert torch.allclose(found.variance, expected.variance, atol=1e-8)

    @pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301
    def test_a_copy_has_the_same_posterior(self, how: Any) -> None:
        model = self.model()
        if how is not copy.deepcopy and "<locals>" in type(model).__qualname__:
            pytest.skip("a class made inside a function cannot be pickled")
        x = torch.rand(3, 2, 4, dtype=torch.float64)
        with torch.no_grad():
            found, expected = how(model).posterior(x), model.posterior(x)
        assert torch.allclose(found.mean, expected.mean, atol=1e-8)
        assert torch.allclose(found.variance, expected.variance, atol=1e-8)

    def test_it_starts_from_the_state_of_an_earlier_fit(self) -> None:
        later = replace(self.request(n=self.n_observations + 2), warm=self.model().state())
        with torch.no_grad():
            mean = self.fitted(later).posterior(later.train_X).mean
        assert (mean - later.train_Y).pow(2).mean() < 0.5 * later.train_Y.pow(2).mean()

    def test_the_state_of_another_surrogate_is_no_warm_start_and_no_error(self) -> None:
        request = replace(self.request(), warm={"something_else": torch.ones(3)})
        with torch.no_grad():
            assert torch.isfinite(self.fitted(request).posterior(request.train_X).mean).all()

    def test_points_next_to_each_other_are_drawn_together(self) -> None:
        """A batch is jointly consistent: what is drawn independently for each point cannot see its own repeats."""
        model = self.model()
        x = torch.full((1, 4), 0.4, dtype=torch.float64) + torch.tensor([0.5, 0.4, 0.0, 0.0])
        pair = torch.cat([x, x + 1e-4])
        with torch.no_grad():
            posterior = model.posterior(pair)
            samples = get_sampler(posterior, torch.Size([512]), seed=0)(posterior)[..., 0]
        assert samples.shape == (512, 2)
        assert float(torch.corrcoef(samples.T)[0, 1]) > 0.99

    def test_the_seed_of_the_sampler_hardly_changes_an_acquisition(self) -> None:
        model = self.model()
        x = torch.rand(5, 1, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        found = []
        with torch.no_grad():
            posterior = model.posterior(x)
            # members are enumerated: nothing is left to chance
            is_exact = isinstance(posterior, MemberPosterior)
            n = posterior.ensemble_size if is_exact else 512
            for seed in range(6):
                sampler = get_sampler(posterior, torch.Size([n]), seed=seed)
                found.append(qExpectedImprovement(model, best_f=0.0, sampler=sampler)(x))
        values = torch.stack(found)
        # what is small beside the best decides nothing, and is a few draws in a tail
        scale = values.mean(0).clamp_min(0.02 * float(values.mean(0).max()))
        assert float((values.std(0) / scale).max()) < (1e-5 if is_exact else 0.1)

    def test_a_noisy_acquisition_over_a_batch_has_gradients(self) -> None:
        request = self.request()
        model = self.model()
        acquisition = qLogNoisyExpectedImprovement(model, X_baseline=request.train_X, prune_baseline=True)
        acquisition.set_X_pending(torch.rand(2, 4, dtype=torch.float64))
        x = torch.rand(3, 2, 4, dtype=torch.float64, requires_grad=True)
        values = acquisition(x)
        assert values.shape == (3,)
        if find_plugin(self.plugin).abilities.gradients:
            (gradient,) = torch.autograd.grad(values.sum(), x)
            assert torch.isfinite(gradient).all()
            assert gradient.abs().max() > 0

    def test_an_observation_known_to_be_noisy_pulls_less(self) -> None:
        request = self.request()
        wrong = request.train_Y.clone()
        wrong[4] += 2.0
        pulls = []
        for variance in (0.01, 100.0):
            known = torch.full_like(wrong, 0.01)
            known[4] = variance
            with torch.no_grad():
                model = self.fitted(replace(request, train_Y=wrong, train_Yvar=known))
                pulls.append(float(model.posterior(request.train_X[4:5]).mean - request.train_Y[4]))
        assert pulls[1] < pulls[0] - 0.25
        assert abs(pulls[1]) < 1.0

    def test_a_configuration_may_be_there_several_times(self) -> None:
        request = self.request()
        doubled = replace(
            request,
            train_X=request.train_X.repeat(2, 1),
            train_Y=torch.cat([request.train_Y, request.train_Y + 0.1]),
        )
        with torch.no_grad():
            posterior = self.fitted(doubled).posterior(request.train_X)
        assert torch.isfinite(posterior.mean).all()
        assert torch.isfinite(posterior.variance).all()

    def test_two_hundred_dimensions_are_not_too_many(self) -> None:
        space = SearchSpace(parameters=tuple(Float(name=f"x{i}", low=0, high=1) for i in range(200)))
        generator = torch.Generator().manual_seed(0)
        X = torch.rand(12, 200, generator=generator, dtype=torch.float64)
        request = replace(self.request(), train_X=X, train_Y=X[:, :1] - X[:, 1:2], encoding=Encoding(space))
        with torch.no_grad():
            posterior = self.fitted(request).posterior(torch.rand(3, 200, dtype=torch.float64))
        assert torch.isfinite(posterior.mean).all()
        assert (posterior.variance > 0).all()

    def test_its_precision_is_an_option(self) -> None:
        self.require_option("dtype")
        request = self.request()
        default = getattr(request.options, "dtype", None)
        means = []
        for dtype in ("float32", "float64"):
            asked = self.with_options(request, dtype=dtype)
            model: Any = find_plugin(self.plugin).build(asked)
            if dtype != default:
                model.fit(torch.Generator().manual_seed(0))
                with torch.no_grad():
                    residual = model.posterior(request.train_X).mean - request.train_Y
                assert residual.pow(2).mean() < 0.5 * request.train_Y.pow(2).mean()
            # the same state, so that what differs is rounding alone
            model.load_state(self.model().state())
            if not self.is_kept_in_double:
                assert {str(p.dtype) for p in model.parameters()} == {f"torch.{dtype}"}
            with torch.no_grad():
                means.append(model.posterior(request.train_X).mean)
            assert means[-1].dtype == request.train_X.dtype
        assert 1e-12 < float((means[0] - means[1]).abs().max()) < 0.1

    def test_a_device_is_named_as_torch_names_it(self) -> None:
        self.require_option("device")
        with pytest.raises(ValidationError) as refused:
            self.with_options(self.request(), device="the fast one")
        assert [problem["loc"] for problem in refused.value.errors()] == [("device",)]

    def test_its_option_device_wins_over_the_workers(self) -> None:
        """On the device `meta` nothing can be computed."""
        self.require_option("device")
        request = replace(self.with_options(self.request(), device="cpu"), device="meta")
        model: Any = find_plugin(self.plugin).build(request)
        model.load_state(self.model().state())
        assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
        with torch.no_grad():
            assert torch.isfinite(model.posterior(request.train_X).mean).all()

    def test_a_device_that_is_not_there_is_replaced_by_the_cpu(self) -> None:
        if torch.cuda.device_count() > 7:
            pytest.skip("has eight GPUs")
        request = replace(self.request(), device="cuda:7")
        model = self.fitted(request)
        assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_it_fits_on_a_gpu_and_its_state_loads_on_the_cpu(self) -> None:
        request = replace(self.request(), device="cuda")
        model = self.fitted(request)
        assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
        x = torch.rand(5, 2, 4, dtype=torch.float64)
        with torch.no_grad():
            there = model.posterior(x)
        assert there.mean.device == x.device
        residual = (model.posterior(request.train_X).mean - request.train_Y).pow(2).mean()
        assert residual < 0.5 * request.train_Y.pow(2).mean()
        other: Any = find_plugin(self.plugin).build(self.request())
        other.load_state({name: tensor.cpu() for name, tensor in model.state().items()})
        with torch.no_grad():
            here = other.posterior(x)
        assert torch.allclose(here.mean, there.mean, atol=1e-3)
        assert torch.allclose(here.variance, there.variance, rtol=1e-2, atol=1e-3)

    def test_observation_noise_is_told_apart_from_the_latent_variance(self) -> None:
        """Forty observations with noise of variance 0.25, then twenty without."""
        request = self.request(n=40)
        if "noise" in find_plugin(self.plugin).options.model_fields:
            request = self.with_options(request, noise="strong")
        generator = torch.Generator().manual_seed(1)
        added = 0.5 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
        noise = self.fitted(replace(request, train_Y=request.train_Y + added)).noise_variance()
        assert noise.shape == (1,)
        quiet = self.model().noise_variance()
        if torch.equal(noise, quiet):
            pytest.skip("its noise is given, not learned")
        assert 0.25 / 3 < float(noise[0]) < 0.25 * 3
        assert 0 <= float(quiet[0]) < 0.02

    @pytest.mark.parametrize(
        "values",
        [[0.0] * 8, [5.0] * 8, [30.0, -30.0] * 4, [1e-300] * 7 + [0.0], [0.0] * 7 + [1.0]],
        ids=["zero", "constant", "wide", "tiny", "one outlier"],
    )
    def test_odd_values_give_a_finite_posterior(self, values: list[float]) -> None:
        train_Y = torch.tensor(values, dtype=torch.float64)[:, None]
        with torch.no_grad():
            posterior = self.fitted(self.request(train_Y)).posterior(torch.rand(3, 4, dtype=torch.float64))
        assert torch.isfinite(posterior.mean).all()
        assert torch.isfinite(posterior.variance).all()

    def test_the_fewest_observations_it_declares_are_enough(self) -> None:
        n = max(find_plugin(self.plugin).abilities.min_observations, 1)
        request = self.request(torch.linspace(0, 1, n, dtype=torch.float64)[:, None])
        with torch.no_grad():
            assert torch.isfinite(self.fitted(request).posterior(request.train_X).mean).all()

    def test_values_that_are_not_finite_are_refused(self) -> None:
        train_Y = torch.tensor([[0.0], [float("nan")], [1.0]], dtype=torch.float64)
        with pytest.raises((ValueError, InputDataError), match=r"finite|NaN|nan"):
            self.fitted(self.request(train_Y))
        known = torch.full_like(train_Y, 0.1)
        known[1] = float("inf")
        with pytest.raises((ValueError, InputDataError), match="train_Yvar must be finite"):
            self.fitted(replace(self.request(torch.zeros_like(train_Y)), train_Yvar=known))

    def test_no_observations_are_not_enough(self) -> None:
        request = self.request()
        with pytest.raises(NotEnoughData):
            find_plugin(self.plugin).build(
                replace(request, train_X=request.train_X[:0], train_Y=request.train_Y[:0])
            )
