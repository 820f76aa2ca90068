"""The `sobol` plug-in: scrambled Sobol points in the constrained space, no model."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from surrogates.errors import SurrogateError
from surrogates.protocol import Abilities, BuildRequest, Plugin, Surrogate


class SobolOptions(BaseModel):
    """No options: the sequence follows from the study's seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def build(request: BuildRequest) -> Surrogate:
    """There is nothing to build. Raises: SurrogateError."""
    raise SurrogateError(f"sobol has no model to build from {len(request.train_X)} observations")


plugin = Plugin(
    name="sobol",
    summary="Scrambled Sobol points in the constrained space; no model. The baseline.",
    options=SobolOptions,
    abilities=Abilities(needs_model=False, gradients=False, cost_class="free", min_observations=0),
    build=build,
)
