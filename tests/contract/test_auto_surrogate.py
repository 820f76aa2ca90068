"""The surrogate that chooses keeps the contract, chooses rightly, and says why."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from scipy import stats
from scipy.special import logsumexp

from surrogates import registry
from surrogates.auto.comparison import Comparison, compare
from surrogates.auto.density import log_density
from surrogates.auto.model import ChosenSurrogate
from surrogates.averaged import AveragedPosterior, AveragedSampler, sample_counts
from surrogates.encoding import Encoding
from surrogates.errors import FitDiverged, UnknownSurrogate
from surrogates.gp.model import FastGP
from surrogates.gp.options import GpOptions
from surrogates.members import MemberPosterior
from surrogates.mixtures import StudentTPosterior
from surrogates.numerics.stacking import stacking_weights
from surrogates.parameters import Float
from surrogates.protocol import Abilities, BuildRequest, Plugin
from surrogates.space import SearchSpace
from surrogates.testing.contract import SurrogateContract


class TestAuto(SurrogateContract):
    plugin = "auto"
    options: ClassVar[dict[str, Any]] = {"candidates": ["gp", "nngp"], "n_folds": 3}

    def test_its_figures_say_why_it_chose(self) -> None:
        choice = self.model().figures()["choice"]
        assert math.isclose(sum(choice["weights"].values()), 1.0)
        assert set(choice["log_density"]) == {"gp", "nngp"}
        assert set(choice["better_than_first"]) == {"nngp"}
        assert choice["chosen_at"] == self.n_observations

    def test_a_choice_is_kept_until_the_observations_have_grown(self) -> None:
        state = self.model().state()
        few, many = self.request(n=22), self.request(n=30)
        kept = self.fitted(replace(few, warm=state)).figures()["choice"]
        anew = self.fitted(replace(many, warm=state)).figures()["choice"]
        assert kept["chosen_at"] == 20
        assert "log_density" not in kept
        assert anew["chosen_at"] == 30
        assert "log_density" in anew

    def test_few_observations_are_the_first_candidates(self) -> None:
        choice = self.fitted(self.request(n=5)).figures()["choice"]
        assert choice["weights"] == {"gp": 1.0}

    @pytest.mark.parametrize(
        ("options", "field", "reason"),
        [
            ({"candidates": ["gp", "oracle"]}, "candidates", "no surrogate named 'oracle'"),
            ({"candidates": ["gp", "sobol"]}, "candidates", "'sobol' has no model"),
            ({"candidates": ["gp", "auto"]}, "candidates", "candidate of itself"),
            ({"candidates": ["gp", "gp"]}, "candidates", "named twice"),
            ({"candidate_options": {"hmc": {}}}, "candidate_options", "hmc: is none of the candidates gp"),
            ({"candidate_options": {"nngp": {"depth": 99}}}, "candidate_options", "nngp.depth"),
            ({"candidate_options": {"gp": {"depth": 2}}}, "candidate_options", "gp.depth"),
            ({"candidate_options": {"gp": {"output": "standardise"}}}, "candidate_options", "gp.output"),
            ({"candidate_options": {"gp": {"exact_points": 60}}}, "candidate_options", "gp.exact_points"),
            ({"candidate_options": {"gp": {"local_points": 60}}}, "candidate_options", "gp.local_points"),
        ],
    )
    def test_candidates_that_cannot_be_are_refused_before_any_fit(
        self, options: dict[str, Any], field: str, reason: str
    ) -> None:
        (problem,) = registry.check_options("auto", options)
        assert problem.path == field
        assert reason in problem.reason

    def test_options_of_candidates_reach_them(self) -> None:
        options = {"candidates": ["nngp"], "candidate_options": {"nngp": {"depth": 1}}}
        assert registry.check_options("auto", options) == []
        model = self.fitted(
            replace(self.request(), options=registry.plugin("auto").options.model_validate(options))
        )
        assert model.settled.covar_module.kernel.depth == 1

    def test_a_candidate_that_is_not_installed_is_named(self) -> None:
        request = self.request()
        options = request.options.model_copy(update={"candidates": ("gp", "oracle")})
        with pytest.raises(UnknownSurrogate, match="oracle"):
            self.fitted(replace(request, options=options))


class TestAverage(SurrogateContract):
    plugin = "auto"
    options: ClassVar[dict[str, Any]] = {"candidates": ["gp", "nngp"], "n_folds": 3, "combine": "average"}


class _Constant(FastGP):
    """Long lengthscales and much noise, whatever the data: a bad model."""

    def fit(self, generator: torch.Generator) -> None:  # noqa: ARG002
        self.load_state(
            {
                "log_lengthscales": torch.full((len(self.groups),), 6.0, dtype=torch.float64),
                "log_noise": torch.tensor(0.0, dtype=torch.float64),
                "n_at_fit": torch.tensor(1),
            }
        )


class _Broken(FastGP):
    def fit(self, generator: torch.Generator) -> None:  # noqa: ARG002
        raise FitDiverged("never works")


def _plugin(name: str, kind: type[FastGP]) -> Plugin:
    def build(request: BuildRequest) -> Any:
        return kind(request.train_X, request.train_Y, request.train_Yvar, groups=request.encoding.groups)

    return Plugin(name=name, summary=name, options=GpOptions, abilities=Abilities(), build=build)


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A surrogate that predicts badly and one that cannot be fitted, installed beside the real ones."""
    found = dict(registry.plugins()) | {
        "constant": _plugin("constant", _Constant),
        "broken": _plugin("broken", _Broken),
    }
    monkeypatch.setattr(registry, "plugins", lambda: found)


def _auto(others: None, **options: Any) -> ChosenSurrogate:
    contract = TestAuto()
    request = contract.request()
    chosen: type[BaseModel] = registry.plugin("auto").options
    model: Any = registry.plugin("auto").build(replace(request, options=chosen.model_validate(options)))
    model.fit(torch.Generator().manual_seed(0))
    return model


def test_a_better_surrogate_replaces_the_first(others: None) -> None:
    model = _auto(others, candidates=["constant", "gp"])
    assert model.weights == {"gp": 1.0}
    assert model.core is model.settled.core
    gain = model.figures()["choice"]["better_than_first"]["gp"]
    sure = model.figures()["choice"]["sure"]
    assert gain["mean"] > sure * gain["standard_error"] > 0
    assert model.figures()["choice"]["because"].startswith("gp predicts better than constant, by ")


def test_a_worse_surrogate_does_not(others: None) -> None:
    model = _auto(others, candidates=["gp", "constant"])
    assert model.weights == {"gp": 1.0}
    assert "beyond doubt" in model.figures()["choice"]["because"]


def test_an_average_has_little_of_a_bad_surrogate(others: None) -> None:
    weights = _auto(others, candidates=["gp", "constant"], combine="average").weights
    assert weights["gp"] > 0.8


def test_a_candidate_that_cannot_be_fitted_is_left_out_and_named(others: None) -> None:
    model = _auto(others, candidates=["gp", "broken"])
    assert model.weights == {"gp": 1.0}
    assert "never works" in model.figures()["choice"]["left_out"]["broken"]


def test_the_first_candidates_failure_is_the_surrogates(others: None) -> None:
    with pytest.raises(FitDiverged, match="never works"):
        _auto(others, candidates=["broken", "gp"])


def test_what_would_pass_the_budget_is_left_out_and_the_first_never_is() -> None:
    request = TestAuto().request()
    ticks = iter(range(0, 10_000, 10))
    compared = compare(
        request,
        ("gp", "nngp"),
        {name: registry.plugin(name).options() for name in ("gp", "nngp")},
        n_folds=3,
        max_compared=300,
        budget_seconds=25.0,
        generator=torch.Generator().manual_seed(0),
        clock=lambda: float(next(ticks)),
    )
    assert compared.names == ("gp",)
    assert compared.log_densities.shape == (20, 1)
    assert "25 s" in compared.left_out["nngp"]


def test_cheap_candidates_are_compared_before_one_uses_the_budget_up() -> None:
    request = TestAuto().request()
    ticks = iter(range(10_000))
    names = ("gp", "hmc", "nngp")
    options: dict[str, Any] = {name: registry.plugin(name).options() for name in names}
    options["hmc"] = options["hmc"].model_copy(
        update={"width": 4, "depth": 1, "n_draws": 16, "max_r_hat": 10.0}
    )
    compared = compare(
        request,
        names,
        options,
        n_folds=3,
        max_compared=300,
        budget_seconds=20.0,
        generator=torch.Generator().manual_seed(0),
        clock=lambda: float(next(ticks)),
    )
    assert compared.names[:2] == ("gp", "nngp")


def test_held_out_densities_are_those_of_fits_without_the_fold() -> None:
    request = TestAuto().request()
    compared = compare(
        request,
        ("gp",),
        {"gp": GpOptions()},
        n_folds=2,
        max_compared=300,
        budget_seconds=60.0,
        generator=torch.Generator().manual_seed(0),
    )
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    held, rest = order[0::2], order[1::2]
    gp = FastGP(request.train_X[rest], request.train_Y[rest], groups=request.encoding.groups)
    gp.fit(torch.Generator().manual_seed(1))
    with torch.no_grad():
        posterior = gp.posterior(request.train_X[held])
    sd = (posterior.variance[:, 0] + gp.noise_variance()[0]).sqrt()
    expected = torch.distributions.Normal(posterior.mean[:, 0], sd).log_prob(request.train_Y[held, 0])
    assert np.allclose(compared.log_densities[:10, 0], expected.numpy(), atol=1e-6)


def _compared(*differences: np.ndarray) -> Comparison:
    """A first candidate, and others whose held-out log densities are higher by these."""
    first = np.random.default_rng(9).normal(size=len(differences[0]))
    names = ("gp", *(f"rival {i}" for i in range(len(differences))))
    return Comparison(names, np.stack([first, *(first + d for d in differences)], axis=1), {})


def _of_mean(n_standard_errors: float, n: int = 40) -> np.ndarray:
    noise = np.random.default_rng(1).normal(size=n)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    # five folds of nearly the same data: half as much again as of independent observations
    return noise + 1.5 * n_standard_errors / math.sqrt(n)


def test_the_first_is_left_only_for_a_significant_difference() -> None:
    """At 39 degrees of freedom the upper 5 % of t begin at 1.685, a third of that at 2.205."""
    assert _compared(_of_mean(1.67)).chosen() == "gp"
    assert _compared(_of_mean(1.70)).chosen() == "rival 0"
    assert _compared(_of_mean(2.19), _of_mean(0.0), _of_mean(-1.0)).chosen() == "gp"
    assert _compared(_of_mean(2.22), _of_mean(0.0), _of_mean(-1.0)).chosen() == "rival 0"
    assert _compared(_of_mean(2.5), _of_mean(4.0)).chosen() == "rival 1"


def test_few_held_out_observations_leave_the_first() -> None:
    assert _compared(_of_mean(50.0, n=19)).chosen() == "gp"
    assert _compared(_of_mean(50.0, n=20)).chosen() == "rival 0"


def test_rivals_that_are_no_better_are_seldom_taken() -> None:
    rng = np.random.default_rng(0)
    left = [_compared(*rng.normal(size=(3, 25))).chosen() != "gp" for _ in range(1000)]
    assert np.mean(left) < 0.01


def test_fewer_folds_are_more_alike() -> None:
    of_five = _compared(_of_mean(1.0))
    assert of_five.differences()["rival 0"][1] == pytest.approx(1.5 / math.sqrt(40))
    of_two = replace(of_five, n_folds=2)
    assert of_two.differences()["rival 0"][1] == pytest.approx(math.sqrt(3 / 40))


def test_one_observation_that_surprised_the_first_is_no_reason_to_leave_it() -> None:
    surprised = np.full(30, -0.1)
    surprised[7] = 1000.0
    assert _compared(surprised).chosen() == "gp"


def test_members_are_scored_as_the_mixture_that_they_are() -> None:
    members = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(1, 2, 1, 1).expand(3, 2, 1, 1)
    y, noise = torch.tensor([-1.0, 0.0, 1.5]).double(), torch.full((3,), 0.01).double()
    found = log_density(MemberPosterior(members), y, noise)
    each = [torch.distributions.Normal(mean, 0.1).log_prob(y) for mean in (-1.0, 1.0)]
    assert torch.allclose(found, torch.logaddexp(*each) - math.log(2), atol=1e-6)
    student = StudentTPosterior(torch.zeros(1, 1).double(), torch.eye(1)[None].double(), degrees=5.0)
    scored = log_density(student, torch.tensor([2.0]).double(), torch.zeros(1).double())
    assert float(scored) == pytest.approx(stats.t.logpdf(2.0, 5.0), abs=0.02)


def _data(kind: str, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws of the Gaussian process, or waves that only a network's covariance foresees."""
    rng = np.random.default_rng(seed)
    X = rng.random((n, 2))
    if kind == "draw":
        distance = np.sqrt(5) * np.linalg.norm((X[:, None] - X[None]) / 0.4, axis=-1)
        K = (1 + distance + distance**2 / 3) * np.exp(-distance)
        y = np.linalg.cholesky(K + 1e-8 * np.eye(n)) @ rng.normal(size=n) + 0.1 * rng.normal(size=n)
    else:
        x, z = 15 * X[:, 0] - 5, 15 * X[:, 1]
        y = (z - 5.1 / (4 * np.pi**2) * x**2 + 5 / np.pi * x - 6) ** 2 + 9.6 * np.cos(x)
    return torch.as_tensor(X), torch.as_tensor((y - y.mean()) / y.std(ddof=1))[:, None]


@pytest.mark.parametrize(("kind", "chosen"), [("draw", "gp"), ("branin", "nngp")])
def test_it_stays_where_the_first_is_right_and_leaves_where_another_is_better(kind: str, chosen: str) -> None:
    found = []
    for seed in range(4):
        X, Y = _data(kind, 50, seed)
        space = SearchSpace(parameters=tuple(Float(name=f"x{i}", low=0, high=1) for i in range(2)))
        compared = compare(
            BuildRequest(
                train_X=X, train_Y=Y, train_Yvar=None, encoding=Encoding(space), options=GpOptions()
            ),
            ("gp", "nngp"),
            {name: registry.plugin(name).options() for name in ("gp", "nngp")},
            n_folds=5,
            max_compared=300,
            budget_seconds=600.0,
            generator=torch.Generator().manual_seed(seed),
        )
        found.append(compared.chosen())
    assert found == [chosen] * 4


def test_stacking_finds_the_mixture_that_made_the_data() -> None:
    rng = np.random.default_rng(1)
    y = np.where(rng.random(4000) < 0.3, rng.normal(-2, 1, 4000), rng.normal(2, 1, 4000))
    densities = np.stack([-0.5 * (y + 2) ** 2, -0.5 * (y - 2) ** 2, -0.5 * (y - 9) ** 2], axis=1)
    weights = stacking_weights(densities)
    assert np.allclose(weights, [0.3, 0.7, 0.0], atol=0.03)
    best = logsumexp(densities + np.log(weights + 1e-300), axis=1).sum()
    for other in ([1, 0, 0], [0.5, 0.5, 0], [1 / 3] * 3):
        with np.errstate(divide="ignore"):
            assert logsumexp(densities + np.log(other), axis=1).sum() <= best + 1e-6


def test_counts_of_samples_add_up_and_follow_the_weights() -> None:
    assert sample_counts(128, [0.5, 0.25, 0.25]) == [64, 32, 32]
    assert sample_counts(10, [1, 1, 1]) in ([4, 3, 3], [3, 4, 3], [3, 3, 4])
    assert sample_counts(3, [0.999, 0.001]) == [3, 0]


def test_a_mixture_has_the_moments_of_its_samples() -> None:
    request = TestAuto().request()
    near = FastGP(request.train_X, request.train_Y, groups=request.encoding.groups)
    near.fit(torch.Generator().manual_seed(0))
    far = FastGP(request.train_X, request.train_Y + 3.0, groups=request.encoding.groups)
    far.fit(torch.Generator().manual_seed(0))
    x = torch.rand(2, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        mixture = AveragedPosterior([near.posterior(x), far.posterior(x)], [0.25, 0.75])
        samples = AveragedSampler(torch.Size([4096]), seed=0)(mixture)
    assert samples.shape == (4096, 2, 3, 1)
    assert torch.allclose(samples.mean(0), mixture.mean, atol=0.02)
    assert torch.allclose(samples.var(0), mixture.variance, rtol=0.05, atol=0.01)
