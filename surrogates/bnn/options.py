"""Options of the neural plug-ins; the defaults are measured recipes, see docs/surrogates/."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from surrogates.compute import ComputeOptions

Activation = Literal["tanh", "erf", "relu"]
NoiseLevel = Literal["auto", "low", "strong"]


class NeuralOptions(ComputeOptions):
    """What all neural plug-ins have."""

    noise: NoiseLevel = "auto"
    """Prior on the noise: `low` for nearly exact objectives, `strong` for noisy ones; `auto` is low unless
    observations come with standard errors."""

    output: Literal["yeo-johnson", "standardise"] = "yeo-johnson"
    """How outputs become model units."""


class NetworkOptions(NeuralOptions):
    """Shape of a fully connected network."""

    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the networks; linear algebra is float64."""

    width: Annotated[int, Field(ge=2, le=4096)] = 64
    """Units of a hidden layer."""

    depth: Annotated[int, Field(ge=1, le=8)] = 2
    """Hidden layers."""

    activation: Activation = "tanh"
    """`tanh` and `erf` draw smooth functions, `relu` jagged ones."""


class RelevanceOptions(NetworkOptions):
    """A network whose inputs need not count alike."""

    relevance: Literal["gp", "equal"] = "gp"
    """How much each input counts: `gp` takes it from the lengthscales of the study's Gaussian process."""


class HmcOptions(RelevanceOptions):
    """Hamiltonian Monte Carlo over the networks."""

    width: Annotated[int, Field(ge=2, le=4096)] = 128
    """Units of a hidden layer."""

    relevance: Literal["gp", "sampled", "equal"] = "gp"  # type: ignore[assignment]
    """How much each input counts: `gp` takes it from the lengthscales of the study's Gaussian process, `sampled`
    samples it with the weights, which chains mix over badly where observations are few."""

    prior: Literal["standard", "functional"] = "standard"
    """`functional` chooses the prior of the weights so that the networks are distributed most nearly like the
    study's Gaussian process. It sets the relevances, too, so `relevance: sampled` is refused beside it."""

    n_chains: Annotated[int, Field(ge=2, le=64)] = 4
    """Independent chains, moved together."""

    n_warmup: Annotated[int, Field(ge=10, le=5000)] = 60
    """Transitions that adapt the step size; a third of them after a warm start."""

    n_draws: Annotated[int, Field(ge=16, le=5000)] = 64
    """Transitions kept of each chain; up to three times as many where the chains have not mixed yet. The effective
    sample size has to exceed 100, or half of `n_chains` times `n_draws` where that is less."""

    max_r_hat: Annotated[float, Field(gt=1.0, le=10.0)] = 1.05
    """Split R-hat of the function above which the chains count as disagreeing."""

    n_members: Literal[32, 64, 128, 256, 512] = 128
    """Draws that make up the posterior, evenly spaced among the kept ones."""

    @field_validator("prior")
    @classmethod
    def _relevances_have_one_source(cls, prior: str, info: ValidationInfo) -> str:
        if prior == "functional" and info.data.get("relevance") == "sampled":
            raise ValueError(
                "a functional prior sets the relevances: `relevance` cannot be `sampled` beside it"
            )
        return prior


class EnsembleOptions(RelevanceOptions):
    """Networks trained together, each towards a prior draw of its own."""

    n_members: Literal[8, 16, 32, 64, 128] = 64
    """Networks."""

    max_steps: Annotated[int, Field(ge=10, le=100_000)] = 200
    """Steps of Adam at most; how many is chosen by the likelihood of observations hidden from some members."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Of Adam, in coordinates whose prior is standard normal."""


class SgmcmcOptions(RelevanceOptions):
    """Stochastic-gradient Hamiltonian Monte Carlo over the networks."""

    schedule: Literal["constant", "cyclical"] = "constant"
    """`constant` samples with one step size after a burn-in; `cyclical` explores and samples in turns, which finds more
    modes and gives narrower intervals."""

    n_chains: Annotated[int, Field(ge=1, le=64)] = 8
    """Independent chains, moved together."""

    n_steps: Annotated[int, Field(ge=50, le=1_000_000)] = 3000
    """Steps of each chain."""

    n_cycles: Annotated[int, Field(ge=1, le=100)] = 4
    """Cycles of the step size."""

    exploration: Annotated[float, Field(ge=0, lt=1, validate_default=True)] = 0.8
    """Part of a cycle in which steps have no noise and nothing is kept; at least the last step of a cycle is."""

    step: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Longest step, as a share of the longest stable one."""

    friction: Annotated[float, Field(gt=0, le=100)] = 1.0
    """How fast momentum is forgotten, per unit of time."""

    batch_size: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Observations a step looks at."""

    n_members: Literal[32, 64, 128, 256, 512] = 128
    """Draws that make up the posterior, evenly spaced among the kept ones."""

    @field_validator("exploration")
    @classmethod
    def _a_cycle_keeps_a_step(cls, exploration: float, info: ValidationInfo) -> float:
        if info.data.get("schedule") != "cyclical" or not {"n_steps", "n_cycles"} <= info.data.keys():
            return exploration
        length = math.ceil(info.data["n_steps"] / info.data["n_cycles"])
        if exploration > (length - 1) / length:
            raise ValueError(
                f"`n_steps` over `n_cycles` are cycles of {length} steps, of which one has to be kept: "
                f"at most {(length - 1) / length:.3g} of a cycle can explore"
            )
        return exploration


class NngpOptions(NeuralOptions):
    """An infinitely wide network; its covariance is computed in `dtype`."""

    depth: Annotated[int, Field(ge=1, le=8)] = 3
    """Hidden layers."""

    activation: Activation = "erf"
    """`erf` and `tanh` (computed as an erf of nearly its shape) draw smooth functions, `relu` jagged ones."""

    ard: bool = True
    """Whether every input has a relevance of its own; the more inputs, the closer its prior holds them together."""

    fit_points: Annotated[int, Field(ge=20, le=2000)] = 200
    """Hyperparameters are fitted on at most so many observations: a third best ones, two thirds random."""


class StudentTOptions(NngpOptions):
    """A Student-t process; `depth`, `activation` and `ard` are of the network."""

    kernel: Literal["nngp", "gp"] = "nngp"
    """Covariance: that of an infinitely wide network, or the Gaussian process's Matern-5/2."""

    alpha: Annotated[float, Field(gt=0.5, le=1e6)] = 3.0
    """Shape of the scale's inverse gamma prior (its rate is the same): small is heavy-tailed, large Gaussian."""


class LaplaceOptions(NetworkOptions):
    """Trained networks with the uncertainty of their linearisation."""

    ard: bool = True
    """Whether every input has a relevance of its own."""

    dtype: Literal["float32", "float64"] = "float64"
    """Precision of the networks; linear algebra is float64."""

    depth: Annotated[int, Field(ge=1, le=8)] = 1
    """Hidden layers."""

    n_members: Annotated[int, Field(ge=1, le=64)] = 8
    """Networks trained side by side, equally likely in the posterior."""

    n_steps: Annotated[int, Field(ge=1, le=1000)] = 100
    """Gauss-Newton steps of the weights, at most."""

    fit_points: Annotated[int, Field(ge=20, le=2000)] = 200
    """Networks are trained on at most so many observations, then a few steps on all."""


class NeuralLinearOptions(NetworkOptions):
    """Trained features under Bayesian linear regression."""

    dtype: Literal["float32", "float64"] = "float64"
    """Precision of the networks; linear algebra is float64."""

    width: Annotated[int, Field(ge=2, le=4096)] = 128
    """Units of a hidden layer."""

    depth: Annotated[int, Field(ge=1, le=8)] = 3
    """Hidden layers."""

    ard: bool = True
    """Whether every input has a relevance of its own."""

    n_members: Annotated[int, Field(ge=1, le=64)] = 8
    """Networks trained side by side, equally likely in the posterior."""

    n_steps: Annotated[int, Field(ge=1, le=20000)] = 400
    """Steps of training at most; it ends where observations left out are predicted best."""

    fit_points: Annotated[int, Field(ge=20, le=5000)] = 500
    """Networks are trained on at most so many observations; their last layers learn from all."""


class DklOptions(NetworkOptions):
    """A Gaussian process over inputs and features of a network."""

    dtype: Literal["float32", "float64"] = "float64"
    """Precision of the networks; linear algebra is float64."""

    n_members: Annotated[int, Field(ge=2, le=32)] = 4
    """Networks trained side by side, each without another part of the data."""

    n_steps: Annotated[int, Field(ge=0, le=10000)] = 300
    """Steps of training at most; it ends where observations left out are predicted best."""

    fit_points: Annotated[int, Field(ge=20, le=2000)] = 200
    """Networks are trained on at most so many observations, then conditioned on all."""
