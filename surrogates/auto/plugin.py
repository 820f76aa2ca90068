"""The `auto` plug-in: described here, built behind a heavy import."""

from __future__ import annotations

from surrogates.auto.options import AutoOptions
from surrogates.protocol import Abilities, BuildRequest, Plugin, Surrogate


def build(request: BuildRequest) -> Surrogate:
    """An unfitted ChosenSurrogate. Raises: NotEnoughData, UnknownSurrogate."""
    from surrogates.auto.model import ChosenSurrogate  # noqa: PLC0415  torch stays out of processes that only describe

    return ChosenSurrogate(request)


plugin = Plugin(
    name="auto",
    summary="The surrogate that predicts this study's own observations best, chosen anew as they grow.",
    options=AutoOptions,
    abilities=Abilities(cost_class="moderate"),
    build=build,
)
