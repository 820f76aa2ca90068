"""The neural plug-ins: described here, built behind heavy imports."""

from __future__ import annotations

from surrogates.bnn.options import HmcOptions
from surrogates.protocol import Abilities, BuildRequest, Plugin, Surrogate


def _hmc(request: BuildRequest) -> Surrogate:
    from surrogates.bnn.hmc import HmcNetwork  # noqa: PLC0415  torch stays out of processes that only describe

    return HmcNetwork(request)


hmc = Plugin(
    name="hmc",
    summary="Bayesian neural network, sampled by Hamiltonian Monte Carlo with its last layer in closed form.",
    options=HmcOptions,
    abilities=Abilities(queue="gpu", cost_class="expensive", max_sensible_observations=1000),
    build=_hmc,
)
