"""The Gaussian process plug-ins: described here, built behind heavy imports."""

from __future__ import annotations

from surrogates.compute import device_of
from surrogates.gp.options import GpOptions, SvgpOptions
from surrogates.protocol import Abilities, BuildRequest, Plugin, Surrogate


def build(request: BuildRequest) -> Surrogate:
    """An unfitted FastGP, or a VariantGP where prior or warp are other than the recipe's. Raises: NotEnoughData."""
    from surrogates.gp.model import FastGP  # noqa: PLC0415  torch stays out of processes that only describe
    from surrogates.gp.variants import VariantGP  # noqa: PLC0415

    assert isinstance(request.options, GpOptions)
    if not request.options.is_recipe:
        return VariantGP(request)
    return FastGP(
        request.train_X,
        request.train_Y,
        request.train_Yvar,
        groups=request.encoding.groups,
        options=request.options,
        warm=request.warm,
        device=device_of(request.options, request.device),
    )


plugin = Plugin(
    name="gp",
    summary="Gaussian process, Matern-5/2 with a lengthscale for each dimension, closed-form MAP fit.",
    options=GpOptions,
    abilities=Abilities(
        fantasies=True, cost_class="cheap", min_observations=1, max_sensible_observations=None
    ),
    build=build,
)


def _svgp(request: BuildRequest) -> Surrogate:
    from surrogates.gp.svgp import SparseGP  # noqa: PLC0415  torch stays out of processes that only describe

    return SparseGP(request)


svgp = Plugin(
    name="svgp",
    summary="Variational Gaussian process with inducing points, for thousands of observations.",
    options=SvgpOptions,
    abilities=Abilities(cost_class="moderate", min_observations=1, max_sensible_observations=10000),
    build=_svgp,
)
