"""What the service answers, as frozen objects; `raw` holds the answer as it came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A trial as the service sees it."""

    id: str
    study_id: str
    number: int
    state: str
    parameters: dict[str, Any]
    metrics: dict[str, float]
    sems: dict[str, float | None]
    cost: float | None
    worker: str | None
    attempts: int
    stop_requested: bool
    reason: str | None
    source: str
    suggestion_id: str | None
    provenance: dict[str, Any]
    raw: Json = field(repr=False, compare=False)

    @classmethod
    def from_json(cls, raw: Json) -> Trial:
        return cls(**_trial_fields(raw))


def _trial_fields(raw: Json) -> dict[str, Any]:
    names = (
        "id",
        "study_id",
        "number",
        "state",
        "parameters",
        "cost",
        "worker",
        "attempts",
        "stop_requested",
        "reason",
        "source",
        "suggestion_id",
        "provenance",
    )
    return {name: raw[name] for name in names} | {
        "metrics": {name: m["value"] for name, m in raw["metrics"].items()},
        "sems": {name: m["sem"] for name, m in raw["metrics"].items()},
        "raw": raw,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedTrial(Trial):
    """A trial with the lease under which this worker may report."""

    lease: str
    lease_seconds: float
    attempt: int

    @classmethod
    def from_json(cls, raw: Json) -> ClaimedTrial:
        extra = {name: raw[name] for name in ("lease", "lease_seconds", "attempt")}
        return cls(**_trial_fields(raw), **extra)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """The answer to a claim: trials, or why there are none and whether it is worth asking again."""

    trials: Sequence[ClaimedTrial]
    study_state: str
    reason: str | None
    limited_by: str | None
    retry_after_seconds: float | None
    """None where asking again is pointless or needless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """What a worker learns from a sign of life."""

    lease_expires_at: str
    lease_seconds: float
    should_stop: bool
    should_pause: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study with its counters; `best` where there is a single objective and a feasible trial."""

    id: str
    name: str
    state: str
    state_reason: str | None
    surrogate: str
    data_version: int
    counts: dict[str, int]
    n_trials: int
    cost: float
    best_value: float | None
    best: Trial | None
    spec: dict[str, Any] | None = field(repr=False)
    raw: Json = field(repr=False, compare=False)

    @classmethod
    def from_json(cls, raw: Json) -> Study:
        names = (
            "id",
            "name",
            "state",
            "state_reason",
            "surrogate",
            "data_version",
            "counts",
            "n_trials",
            "cost",
            "best_value",
        )
        best = raw.get("best")
        return cls(
            **{name: raw[name] for name in names},
            best=Trial.from_json(best) if best else None,
            spec=raw.get("spec"),
            raw=raw,
        )

    @property
    def max_trials(self) -> int | None:
        """The budget of trials, where the study has one."""
        found: int | None = self.raw.get("max_trials")
        return found

    @property
    def n_closed(self) -> int:
        """Trials that ended, in whatever way."""
        return self.n_trials - sum(self.counts[state] for state in ("RUNNING", "PAUSED", "QUEUED"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A prepared configuration and where it came from."""

    id: str
    study_id: str
    state: str
    source: str
    parameters: dict[str, Any]
    generator: str
    data_version: int
    acquisition_value: float | None
    fallback_reason: str | None
    trial_id: str | None
    raw: Json = field(repr=False, compare=False)

    @classmethod
    def from_json(cls, raw: Json) -> Suggestion:
        names = (
            "id",
            "study_id",
            "state",
            "source",
            "parameters",
            "generator",
            "data_version",
            "acquisition_value",
            "fallback_reason",
            "trial_id",
        )
        return cls(**{name: raw[name] for name in names}, raw=raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a study; `seq` grows."""

    seq: int
    kind: str
    data: dict[str, Any]
