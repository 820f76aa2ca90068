"""Options of the `auto` plug-in."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from surrogates.compute import ComputeOptions


class AutoOptions(ComputeOptions):
    """Which surrogates are compared, how long that may take, and what becomes of the result."""

    candidates: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)] = (
        "gp",
        "nngp",
        "student-t",
        "ensemble",
    )
    """Names of plug-ins; the first is the one that others must beat."""

    candidate_options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options of the candidates by name, where not their defaults."""

    combine: Literal["choose", "average"] = "choose"
    """`choose` takes one surrogate; `average` weighs them by stacking."""

    n_folds: Annotated[int, Field(ge=2, le=20)] = 5
    """Parts that the observations are cut into; each is predicted from the others."""

    budget_seconds: Annotated[float, Field(gt=0, le=86_400)] = 30.0
    """A comparison takes no candidate that would take it beyond this."""

    regrowth: Annotated[float, Field(ge=1.0, le=10.0)] = 1.3
    """The choice is made anew once there are so many times the observations it was made from."""

    max_compared: Annotated[int, Field(ge=20, le=5000)] = 300
    """Observations a comparison looks at, at most; random ones where there are more."""

    output: Literal["yeo-johnson", "standardise"] = "yeo-johnson"
    """How outputs become model units."""
