"""What generation sees of a study, and what it answers: candidates with their provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bo_service.domain.spec import StudySpec
from surrogates.parameters import Shares, Value

Parameters = Mapping[str, Value | Shares]
"""A canonical configuration: user units, active parameters only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The final value of one metric, user units; `sem` is its standard error where the worker knows it."""

    value: float
    sem: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """A trial with results: its per-study number, configuration and measurements by metric name."""

    number: int
    parameters: Parameters
    measurements: Mapping[str, Measurement]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyView:
    """Everything generation may know of a study at one data version; all sequences in trial-number order."""

    spec: StudySpec
    seed: int
    """The study's seed; `spec.seed` may be null."""
    data_version: int
    evaluated: tuple[Evaluated, ...] = ()
    infeasible: tuple[Parameters, ...] = ()
    """Configurations closed as INFEASIBLE: they teach where not to look."""
    failed: tuple[Parameters, ...] = ()
    """FAILED and ABANDONED: never suggested again, no other meaning."""
    pending: tuple[Parameters, ...] = ()
    """RUNNING + QUEUED + PAUSED + user-enqueued + suggestions still fresh."""
    n_started: int = 0
    """Trials ever started plus prepared suggestions: the initial design ends at `spec.n_initial` of them."""
    design_index: int = 0
    """Index of the next point of the space-filling sequence; never goes back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalRequest:
    """How many candidates, under which fixed values; `fallback_reason` forbids the model (breaker open)."""

    count: int = 1
    fixed: Parameters = field(default_factory=dict)
    fallback_reason: str | None = None
    device: str = "cpu"
    """What the worker computes on, by torch's name; a surrogate that cannot use it stays on the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One proposed configuration."""

    parameters: dict[str, Value | Shares]
    generator: str
    """For example `initial:centre`, `initial:sobol`, `gp:logei`, `gp:qlognehvi`, `space-filling`."""
    acquisition_value: float | None = None
    predictions: Mapping[str, Measurement] = field(default_factory=dict)
    """Posterior median and half the width of the central 68 % (as `sem`) by metric, user units.

    Empty without a model.
    """
    fallback_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRecord:
    """How the candidates came about: the surrogate, its state and what it cost."""

    surrogate: str
    state: bytes | None
    """safetensors; the next fit's warm start."""
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    device: str = "cpu"
    """What the model lay on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """The answer to one request."""

    candidates: tuple[Candidate, ...]
    fit: FitRecord
