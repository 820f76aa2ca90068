"""Networks as members: what `hmc`, `ensemble` and `sgmcmc` do alike, and what each promises of its own."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from surrogates.bnn.hmc import HmcNetwork, doubt
from surrogates.bnn.options import HmcOptions, SgmcmcOptions
from surrogates.bnn.sgmcmc import Schedule, SgmcmcNetwork
from surrogates.encoding import Encoding
from surrogates.errors import FitRejected, NotEnoughData
from surrogates.parameters import Float
from surrogates.protocol import BuildRequest
from surrogates.registry import plugin
from surrogates.space import SearchSpace

SMALL: dict[str, dict[str, Any]] = {
    "hmc": {"width": 12, "depth": 1, "n_warmup": 30, "n_draws": 16, "n_members": 32, "max_r_hat": 10.0},
    "ensemble": {"width": 12, "depth": 1, "n_members": 32, "max_steps": 40},
    "sgmcmc": {"width": 12, "depth": 1, "n_steps": 400, "n_members": 32},
}


def request(
    name: str, X: torch.Tensor, y: torch.Tensor, Yvar: torch.Tensor | None = None, **options: Any
) -> BuildRequest:
    space = SearchSpace(parameters=tuple(Float(name=f"x{i}", low=0, high=1) for i in range(X.shape[1])))
    return BuildRequest(
        train_X=X,
        train_Y=y[:, None],
        train_Yvar=None if Yvar is None else Yvar[:, None],
        encoding=Encoding(space),
        options=plugin(name).options.model_validate(SMALL[name] | options),
    )


def data(n: int = 16, d: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    X = torch.rand(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.sin(5 * X[:, 0]) + X[:, -1] ** 2
    y += 0.05 * torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return X, (y - y.mean()) / y.std()


def fitted(asked: BuildRequest, name: str) -> Any:
    model: Any = plugin(name).build(asked)
    model.fit(torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("name", SMALL)
def test_an_observation_known_to_be_uncertain_hardly_moves_the_mean(name: str) -> None:
    X = torch.linspace(0, 1, 12, dtype=torch.float64)[:, None]
    y = torch.zeros(12, dtype=torch.float64)
    y[6] = 2.0
    found = []
    for variance in (0.02, 25.0):
        Yvar = torch.full_like(y, 0.02)
        Yvar[6] = variance
        # relevances alike: the Gaussian process that gives them heeds the variance by itself
        model = fitted(request(name, X, y, Yvar, relevance="equal"), name)
        with torch.no_grad():
            found.append(float(model.posterior(X[6:7]).mean))
    assert found[0] > 0.5
    assert abs(found[1]) < 0.4 * found[0]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_networks_compute_in_the_precision_asked_for(name: str, dtype: torch.dtype) -> None:
    X, y = data()
    model = fitted(request(name, X, y, dtype=str(dtype).removeprefix("torch.")), name)
    assert model.members(model.inputs(X)).dtype == dtype
    assert model.state()["draw.positions"].dtype == dtype


@pytest.mark.parametrize("name", SMALL)
def test_the_device_of_the_options_goes_before_that_of_the_worker(name: str) -> None:
    X, y = data()
    model = fitted(replace(request(name, X, y, device="cpu"), device="meta"), name)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert {tensor.device.type for tensor in model.state().values()} == {"cpu"}
    elsewhere: Any = plugin(name).build(replace(request(name, X, y), device="meta"))
    assert elsewhere.X.device.type == "meta"


@pytest.mark.parametrize("name", SMALL)
def test_the_noise_stands_among_the_figures(name: str) -> None:
    model = fitted(request(name, *data()), name)
    assert model.figures()["noise_variance"] == pytest.approx(float(model.noise_variance()))


@pytest.mark.parametrize("name", SMALL)
def test_before_the_fit_there_is_neither_state_nor_noise(name: str) -> None:
    model: Any = plugin(name).build(request(name, *data()))
    for asked in (model.state, model.noise_variance, model.figures):
        with pytest.raises(NotEnoughData):
            asked()


def test_members_of_the_ensemble_spread_as_far_as_noise_leaves_the_mean_of_many_observations_open() -> None:
    """From their anchors alone, without noisy copies of the data, they would agree a hundred times better."""
    X = torch.linspace(0, 1, 3, dtype=torch.float64).repeat(60)[:, None]
    noise = torch.randn(180, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = X[:, 0] + 0.7 * noise
    model = fitted(request("ensemble", X, y - y.mean(), noise="strong", n_members=128), "ensemble")
    with torch.no_grad():
        variance = model.posterior(X[:3, None]).variance.mean()
    assert 0.4 < float(variance) * 60 / float(model.noise_variance()) < 2.0


class TestHmc:
    def test_a_functional_prior_sets_the_relevances(self) -> None:
        model = _learnt_and_stored(prior="functional")
        relevance = model.state()["relevance"]
        assert relevance[0] > 1.5 * relevance[1]
        # those of the Gaussian process alone have a mean square of 1
        assert abs(float(relevance.square().mean()) - 1.0) > 0.1

    def test_sampled_relevances_are_coordinates_of_the_networks(self) -> None:
        model = _learnt_and_stored(relevance="sampled")
        assert model.target.n_relevances == 2
        assert (model.state()["relevance"] == 1).all()
        drawn = model.prior.scales(model.state()["draw.positions"]).relevance[..., 0]
        assert (drawn.std(0) > 0.05).all()

    def test_relevances_are_not_both_set_and_sampled(self) -> None:
        with pytest.raises(ValidationError) as refused:
            HmcOptions(prior="functional", relevance="sampled")
        assert refused.value.errors()[0]["loc"] == ("prior",)

    @pytest.mark.parametrize(
        ("figure", "value", "reason"),
        [
            ("r_hat", 1.06, "R-hat"),
            ("r_hat", math.nan, "R-hat"),
            ("effective_sample_size", 99.0, "effective sample size"),
            ("acceptance", 0.5, "acceptance"),
            ("n_divergent", 6, "6 of 256 transitions diverged"),
        ],
    )
    def test_a_figure_out_of_its_range_is_a_doubt(self, figure: str, value: float, reason: str) -> None:
        good = {
            "r_hat": 1.02,
            "effective_sample_size": 140.0,
            "n_draws": 256,
            "acceptance": 0.99,
            "n_divergent": 5,
        }
        assert doubt(good, HmcOptions()) is None
        found = doubt(good | {figure: value}, HmcOptions())
        assert found is not None
        assert reason in found

    def test_few_draws_need_a_sample_size_of_half_of_them(self) -> None:
        figures = {
            "r_hat": 1.0,
            "effective_sample_size": 33.0,
            "n_draws": 64,
            "acceptance": 0.8,
            "n_divergent": 0,
        }
        few = HmcOptions(n_chains=4, n_draws=16)
        assert doubt(figures, few) is None
        assert doubt(figures | {"effective_sample_size": 31.0}, few) is not None

    def test_chains_that_hardly_move_are_rejected_although_they_agree(self) -> None:
        model: Any = plugin("hmc").build(request("hmc", *data(), n_chains=2))
        # steps as short as these, capped in number, are no sampler
        model._start = _tiny_steps(model)
        with pytest.raises(FitRejected, match="effective sample size"):
            model.fit(torch.Generator().manual_seed(1))

    def test_a_warm_start_goes_on_where_the_chains_stood(self) -> None:
        X, y = data()
        first = fitted(request("hmc", X, y), "hmc")
        kept = {name: t for name, t in first.state().items() if not name.startswith("draw.")}
        later = plugin("hmc").build(replace(request("hmc", X, y), warm=kept))
        assert isinstance(later, HmcNetwork)
        chains, step, n_warmup = later._start(torch.Generator().manual_seed(2))
        assert torch.equal(chains.position, kept["chains"])
        assert step == float(kept["step"])
        assert n_warmup == 10
        assert first.figures()["n_warmup"] == 30


def _learnt_and_stored(**options: Any) -> Any:
    """A fit that predicts its data, and does so again from its state."""
    X, y = data()
    asked = request("hmc", X, y, **options)
    model = fitted(asked, "hmc")
    again: Any = plugin("hmc").build(asked)
    again.load_state(model.state())
    with torch.no_grad():
        mean = model.posterior(X).mean
        assert torch.allclose(again.posterior(X).mean, mean, atol=1e-6)
    assert (mean[:, 0] - y).square().mean() < 0.2
    return model


def _tiny_steps(model: Any) -> Any:
    start = model._start

    def started(generator: torch.Generator) -> Any:
        chains, _, _ = start(generator)
        return chains, 1e-5, 0

    return started


class TestSgmcmc:
    @pytest.mark.parametrize(
        "chosen",
        [
            {"exploration": 0.95, "n_steps": 60, "n_cycles": 10},
            {"n_steps": 50, "n_cycles": 100},
            {"exploration": 0.67, "n_steps": 60, "n_cycles": 20},
        ],
        ids=["short cycles", "more cycles than steps", "one step too long"],
    )
    def test_a_cycle_that_keeps_no_step_is_refused(self, chosen: dict[str, Any]) -> None:
        SgmcmcOptions(**chosen)
        with pytest.raises(ValidationError) as refused:
            SgmcmcOptions(schedule="cyclical", **chosen)
        assert refused.value.errors()[0]["loc"] == ("exploration",)

    @pytest.mark.parametrize("n_steps", [50, 59, 60, 61, 99])
    @pytest.mark.parametrize("n_cycles", [1, 3, 7, 50, 100])
    def test_every_whole_cycle_keeps_a_step_at_the_longest_exploration(
        self, n_steps: int, n_cycles: int
    ) -> None:
        length = math.ceil(n_steps / n_cycles)
        longest = (length - 1) / length
        options = SgmcmcOptions(schedule="cyclical", n_steps=n_steps, n_cycles=n_cycles, exploration=longest)
        schedule = Schedule(n_steps, n_cycles, options.exploration, 0.1, is_cyclical=True)
        assert len(set(schedule.chosen_steps(n_steps))) == n_steps // length

    @pytest.mark.parametrize("n_chains", [1, 3, 8, 64])
    def test_there_are_as_many_members_as_asked_for(self, n_chains: int) -> None:
        model = fitted(request("sgmcmc", *data(), n_chains=n_chains, n_steps=80), "sgmcmc")
        assert len(model.state()["draw.positions"]) == 32
        assert len(model.state()["draw.outputs"]) == 32

    def test_only_the_positions_that_become_members_are_kept(self) -> None:
        schedule = Schedule(100_000, 4, 0.8, 0.1, is_cyclical=False)
        steps = schedule.chosen_steps(16)
        assert len(set(steps)) == 16
        assert steps == sorted(steps)
        assert steps[0] == 25_000
        model = fitted(request("sgmcmc", *data(), n_chains=8), "sgmcmc")
        assert model.figures()["n_kept"] == 32

    def test_minibatches_estimate_the_log_posterior_and_its_gradient_without_bias(self) -> None:
        X, y = data(40)
        model = plugin("sgmcmc").build(request("sgmcmc", X, y, dtype="float64", batch_size=10))
        assert isinstance(model, SgmcmcNetwork)
        generator = torch.Generator().manual_seed(1)
        model._set_noise_and_relevance(generator, least_noise=1e-3)
        coordinates, start = model._start(torch.arange(40), generator)
        log_posterior = model._log_posterior(coordinates, model._noise + model.variances)
        position = start + 0.1 * torch.randn(start.shape, generator=generator, dtype=torch.float64)

        def gradient(rows: torch.Tensor) -> torch.Tensor:
            leaf = position.clone().requires_grad_()
            (found,) = torch.autograd.grad(log_posterior(leaf, rows)[0], leaf)
            return found

        batches = torch.randperm(40, generator=generator).reshape(4, 10)
        whole = torch.arange(40)
        estimates = torch.stack([gradient(rows) for rows in batches])
        assert torch.allclose(estimates.mean(0), gradient(whole), atol=1e-8)
        values = torch.stack([log_posterior(position, rows)[1] for rows in batches])
        assert torch.allclose(values.mean(0), log_posterior(position, whole)[1], atol=1e-8)
        assert not torch.allclose(estimates[0], gradient(whole))
