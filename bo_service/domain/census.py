"""The whole service in numbers: what `/metrics`, `bo status` and alerts are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bo_service.domain.job import Queue, ServiceProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCensus:
    """One queue's jobs."""

    n_due: int = 0
    """Jobs that could run now."""
    n_resting: int = 0
    """Jobs that wait after a crash."""
    n_running: int = 0
    oldest_seconds: float = 0.0
    """How long the one that waits longest is due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitTotals:
    """Fits of one surrogate on one device, ever."""

    n: int = 0
    n_fallbacks: int = 0
    """Fits that ended on another rung of the ladder than the one the study asked for."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmTotals:
    """Calls of one language model, ever."""

    n: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Connections:
    """One process's connections to the database."""

    n_in_use: int
    n_idle: int
    limit: int
    """So many at most, those of a short overflow included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """Everything counted at one moment."""

    studies: Mapping[str, int] = field(default_factory=dict)
    """State to number."""
    trials: Mapping[str, int] = field(default_factory=dict)
    """State to number."""
    queues: Mapping[Queue, QueueCensus] = field(default_factory=dict)
    n_fresh: int = 0
    """Suggestions that active studies could give out now."""
    n_stale: int = 0
    """Prepared suggestions that more results than their study bears have overtaken."""
    processes: tuple[ServiceProcess, ...] = ()
    """Those heard of lately."""
    n_breakers_open: int = 0
    n_deliveries_waiting: int = 0
    """Messages to webhooks that are due, or wait for their next try."""
    n_deliveries_given_up: int = 0
    """Those that failed for good, of all that are kept."""
    n_pushes_waiting: int = 0
    """Trials announced to a fleet for which nobody came yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What only grows."""

    fits: Mapping[tuple[str, str], FitTotals] = field(default_factory=dict)
    """(surrogate, device) to what its fits took."""
    events: Mapping[str, int] = field(default_factory=dict)
    """Kind to number of events."""
    n_leases_expired: int = 0
    crashes: Mapping[str, int] = field(default_factory=dict)
    """The surrogate a study had to number of its jobs that crashed; empty where the event does not tell."""
    llm: Mapping[str, LlmTotals] = field(default_factory=dict)
    """Model to what its calls took."""
