"""Options of the `auto` plug-in."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationInfo, field_validator

from surrogates.compute import ComputeOptions
from surrogates.errors import UnknownSurrogate
from surrogates.registry import check_options, plugin

NAME: Final = "auto"

OF_THE_STUDY: Final = ("output", "exact_points", "local_points")
"""Options that act before any candidate sees data: they are options of the study's surrogate."""


class AutoOptions(ComputeOptions):
    """Which surrogates are compared, how long that may take, and what becomes of the result."""

    candidates: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)] = (
        "gp",
        "nngp",
        "student-t",
        "ensemble",
    )
    """Names of plug-ins with a model; the first is the one that others must beat."""

    candidate_options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options of the candidates by name, where not their defaults; `output` is one of this surrogate's own."""

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

    @field_validator("candidates")
    @classmethod
    def _are_models(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Every candidate is installed, has a model to predict with, and stands there once."""
        if len(set(names)) < len(names):
            raise ValueError("a candidate is named twice")
        for name in names:
            if name == NAME:
                raise ValueError(f"{name!r} cannot be a candidate of itself")
            try:
                needs_model = plugin(name).abilities.needs_model
            except UnknownSurrogate as error:
                raise ValueError(str(error)) from None
            if not needs_model:
                raise ValueError(f"{name!r} has no model whose predictions could be compared")
        return names

    @field_validator("candidate_options")
    @classmethod
    def _are_options_of_candidates(
        cls, options: dict[str, dict[str, Any]], info: ValidationInfo
    ) -> dict[str, dict[str, Any]]:
        """Options of candidates alone, each as its plug-in takes them."""
        candidates = info.data.get("candidates")
        if candidates is None:
            # what is wrong with the candidates is said already
            return options
        problems = []
        for name, given in options.items():
            if name not in candidates:
                problems.append(f"{name}: is none of the candidates {', '.join(candidates)}")
                continue
            problems += [
                f"{name}.{option}: is an option of the study's surrogate, not of a candidate"
                for option in OF_THE_STUDY
                if option in given
            ]
            problems += [f"{name}.{problem}" for problem in check_options(name, given)]
        if problems:
            raise ValueError("; ".join(problems))
        return options
