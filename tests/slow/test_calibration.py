"""How far each surrogate's intervals and densities may be off, on two functions without noise from 60 observations.

Everything here is too wide on a smooth function without noise: noise cannot be learned to be nothing. So the 80 %
interval may hold everything, and is asked to hold most.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from statistics import mean
from typing import Any, Final

import pytest
import torch
from botorch.test_functions import Branin, Hartmann
from torch import Tensor

from surrogates.encoding import Encoding
from surrogates.parameters import Float
from surrogates.protocol import BuildRequest
from surrogates.registry import plugin, plugins
from surrogates.space import SearchSpace

FUNCTIONS: Final = {"branin": Branin(negate=True), "hartmann6": Hartmann(dim=6, negate=True)}
QUICK: Final[dict[str, dict[str, Any]]] = {
    "auto": {"candidates": ["gp", "nngp"]},
    "dkl": {"n_members": 2, "n_steps": 150},
    "hmc": {"width": 32, "n_warmup": 40, "n_draws": 32, "n_members": 64, "max_r_hat": 10.0},
    "laplace": {"n_members": 4},
    "neural-linear": {"width": 64, "depth": 2, "n_members": 4, "n_steps": 200},
    "sgmcmc": {"n_steps": 1000, "n_members": 64},
    "svgp": {"n_inducing": 60},
}
"""Less work than by default, so that all of them take a minute together."""

EXPENSIVE: Final = {"hmc", "sgmcmc"}
"""Fitted to one design instead of three."""

NAMES: Final = sorted(name for name, each in plugins().items() if each.abilities.needs_model)

LEAST_COVERAGE: Final = 0.7
MOST_ABOVE_GP: Final = 0.35
"""Nats of the negative log density of a normal with the posterior's mean and variance, noise added."""

EXCEPTIONS: Final[dict[tuple[str, str], tuple[float, float]]] = {
    # between so few points in six dimensions its intervals are too narrow (docs/surrogates/laplace.md)
    ("laplace", "hartmann6"): (0.7, 0.55),
    # made for minibatches of thousands, and given a third of its steps here
    ("sgmcmc", "branin"): (0.7, 0.9),
    ("sgmcmc", "hartmann6"): (0.65, 0.9),
}
"""Least coverage and most nats of those that miss these."""

UNMIXED: Final = {("hmc", "hartmann6")}
"""Chains as short as these do not mix (effective sample sizes below 20), and the fit is rejected: not asked."""


@cache
def _data(function: str, seed: int) -> tuple[BuildRequest, Tensor, Tensor]:
    """60 Sobol points, and 300 random ones with their values, standardised with the former."""
    problem = FUNCTIONS[function]
    train_X = torch.quasirandom.SobolEngine(problem.dim, scramble=True, seed=seed).draw(
        60, dtype=torch.float64
    )
    test_X = torch.rand(300, problem.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    low, high = problem.bounds.double()
    train, test = (problem(low + (high - low) * X).double() for X in (train_X, test_X))
    middle, sd = train.mean(), train.std()
    space = SearchSpace(parameters=tuple(Float(name=f"x{i}", low=0, high=1) for i in range(problem.dim)))
    request = BuildRequest(
        train_X=train_X,
        train_Y=((train - middle) / sd)[:, None],
        train_Yvar=None,
        encoding=Encoding(space),
        options=plugin("gp").options(),
    )
    return request, test_X, (test - middle) / sd


@cache
def _scores(name: str, function: str, seed: int) -> tuple[float, float]:
    """Share of the values inside the 80 % interval, and the negative log density."""
    request, X, y = _data(function, seed)
    options = plugin(name).options.model_validate(QUICK.get(name, {}))
    model: Any = plugin(name).build(replace(request, options=options))
    model.fit(torch.Generator().manual_seed(0))
    with torch.no_grad():
        posterior = model.posterior(X[:, None, :])
    variance = posterior.variance[:, 0, 0].clamp_min(0.0) + model.noise_variance()[0]
    normal = torch.distributions.Normal(posterior.mean[:, 0, 0], variance.sqrt())
    inside = (normal.cdf(y) - 0.5).abs() <= 0.4
    return float(inside.double().mean()), -float(normal.log_prob(y).mean())


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_intervals_and_densities_are_about_right(name: str, function: str) -> None:
    if (name, function) in UNMIXED:
        pytest.skip("takes longer chains than there is time for")
    designs = range(1 if name in EXPENSIVE else 3)
    coverage, density = (
        mean(each) for each in zip(*(_scores(name, function, s) for s in designs), strict=True)
    )
    of_gp = mean(_scores("gp", function, s)[1] for s in designs)
    least, most = EXCEPTIONS.get((name, function), (LEAST_COVERAGE, MOST_ABOVE_GP))
    assert coverage >= least
    assert density <= of_gp + most
