"""The neural plug-ins: described here, built behind heavy imports."""

from __future__ import annotations

from surrogates.bnn.options import (
    DklOptions,
    EnsembleOptions,
    HmcOptions,
    LaplaceOptions,
    NeuralLinearOptions,
    NngpOptions,
    SgmcmcOptions,
    StudentTOptions,
)
from surrogates.protocol import Abilities, BuildRequest, Plugin, Surrogate


def _hmc(request: BuildRequest) -> Surrogate:
    from surrogates.bnn.hmc import HmcNetwork  # noqa: PLC0415  torch stays out of processes that only describe

    return HmcNetwork(request)


def _ensemble(request: BuildRequest) -> Surrogate:
    from surrogates.bnn.ensemble import AnchoredEnsemble  # noqa: PLC0415

    return AnchoredEnsemble(request)


def _sgmcmc(request: BuildRequest) -> Surrogate:
    from surrogates.bnn.sgmcmc import SgmcmcNetwork  # noqa: PLC0415

    return SgmcmcNetwork(request)


def _nngp(request: BuildRequest) -> Surrogate:
    from surrogates.bnn.nngp import InfiniteNetwork  # noqa: PLC0415  torch stays out of processes that only describe

    return InfiniteNetwork(request)


def _student_t(request: BuildRequest) -> Surrogate:
    from surrogates.bnn.student_t import StudentTProcess  # noqa: PLC0415  torch stays out, as above

    return StudentTProcess(request)


def _laplace(request: BuildRequest) -> Surrogate:
    from surrogates.bnn.laplace import LaplaceNetworks  # noqa: PLC0415  torch stays out, as above

    return LaplaceNetworks(request)


def _neural_linear(request: BuildRequest) -> Surrogate:
    from surrogates.bnn.neural_linear import NeuralLinear  # noqa: PLC0415  torch stays out, as above

    return NeuralLinear(request)


def _dkl(request: BuildRequest) -> Surrogate:
    from surrogates.bnn.dkl import DeepKernel  # noqa: PLC0415  torch stays out, as above

    return DeepKernel(request)


hmc = Plugin(
    name="hmc",
    summary="Bayesian neural network, sampled by Hamiltonian Monte Carlo with its last layer in closed form.",
    options=HmcOptions,
    abilities=Abilities(queue="gpu", cost_class="expensive", max_sensible_observations=1000),
    build=_hmc,
)

ensemble = Plugin(
    name="ensemble",
    summary="Deep ensemble, each network anchored to its own prior draw and its own noisy copy of the data.",
    options=EnsembleOptions,
    abilities=Abilities(cost_class="cheap", max_sensible_observations=5000),
    build=_ensemble,
)

sgmcmc = Plugin(
    name="sgmcmc",
    summary="Bayesian neural network by stochastic-gradient Hamiltonian Monte Carlo, for many observations.",
    options=SgmcmcOptions,
    abilities=Abilities(queue="gpu", cost_class="expensive", max_sensible_observations=20_000),
    build=_sgmcmc,
)

nngp = Plugin(
    name="nngp",
    summary="Infinitely wide Bayesian neural network: a Gaussian process with the covariance of a deep network.",
    options=NngpOptions,
    abilities=Abilities(fantasies=True, cost_class="cheap", max_sensible_observations=2000),
    build=_nngp,
)

student_t = Plugin(
    name="student-t",
    summary="Student-t process: a Gaussian process with its output scale integrated out, wider from few data.",
    options=StudentTOptions,
    abilities=Abilities(cost_class="cheap", max_sensible_observations=2000),
    build=_student_t,
)

laplace = Plugin(
    name="laplace",
    summary="Trained neural network with the exact uncertainty of its linearisation (Laplace approximation).",
    options=LaplaceOptions,
    abilities=Abilities(queue="gpu", cost_class="moderate", max_sensible_observations=1000),
    build=_laplace,
)

neural_linear = Plugin(
    name="neural-linear",
    summary="Features of trained neural networks under exact Bayesian linear regression, several networks mixed.",
    options=NeuralLinearOptions,
    abilities=Abilities(queue="gpu", cost_class="moderate", max_sensible_observations=5000),
    build=_neural_linear,
)

dkl = Plugin(
    name="dkl",
    summary="Deep kernel learning: a Gaussian process over inputs and learned features, kept only if they predict.",
    options=DklOptions,
    abilities=Abilities(queue="gpu", cost_class="moderate", max_sensible_observations=2000),
    build=_dkl,
)
