"""Options of the Gaussian process plug-ins."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from surrogates.compute import ComputeOptions


class GpOptions(ComputeOptions):
    """The defaults are a measured recipe; see docs/surrogates/gp.md."""

    prior: Literal["default", "paper", "saas"] = "default"
    """What is believed of lengthscales, scale and noise beforehand. `paper`: the Gamma priors of the study of
    Bayesian neural networks by Li, Rudner and Wilson. `saas`: few of many inputs matter."""

    warp: bool = False
    """Whether each number is first bent by a learned Kumaraswamy distribution function: for objectives that change
    fast at one end of a range and hardly at the other."""

    noise: Literal["auto", "low", "strong"] = "auto"
    """Prior on the noise: `low` for nearly exact objectives, `strong` for noisy ones; `auto` is low unless
    observations come with standard errors. `paper` and `saas` have noise priors of their own."""

    output: Literal["yeo-johnson", "standardise"] = "yeo-johnson"
    """How outputs become model units."""

    fit_points: Annotated[int, Field(ge=20, le=2000)] = 300
    """Hyperparameters are fitted on at most so many observations: a third best ones, two thirds random."""

    exact_points: Annotated[int, Field(ge=50, le=5000)] = 1000
    """Beyond so many observations, suggestions use a local subset, every fifth a global one."""

    local_points: Annotated[int, Field(ge=20, le=2000)] = 500
    """Size of the local subset: the observations nearest to the incumbent."""

    @property
    def is_recipe(self) -> bool:
        """Whether this is the Gaussian process with the closed-form fit."""
        return self.prior == "default" and not self.warp


class SvgpOptions(ComputeOptions):
    """A sparse Gaussian process for thousands of observations; see docs/surrogates/svgp.md."""

    n_inducing: Annotated[int, Field(ge=16, le=2000)] = 256
    """Inducing points at most: the observations that tell most about all others. Time grows with the square."""

    noise: Literal["auto", "low", "strong"] = "auto"
    """Prior on the noise: `low` for nearly exact objectives, `strong` for noisy ones; `auto` is low unless
    observations come with standard errors."""

    output: Literal["yeo-johnson", "standardise"] = "yeo-johnson"
    """How outputs become model units."""

    exact_points: Annotated[int, Field(ge=50, le=50000)] = 10000
    """Beyond so many observations, suggestions use a local subset, every fifth a global one."""

    local_points: Annotated[int, Field(ge=20, le=20000)] = 5000
    """Size of the local subset: the observations nearest to the incumbent."""
