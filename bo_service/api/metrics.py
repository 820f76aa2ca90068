"""What Prometheus reads: requests counted by this process (or all that share its port), the service counted in SQL."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from bo_service.domain.census import Census, Connections, Totals

SHARED_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Set before this module is imported, it makes the processes that share a port count together."""

SECONDS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

disable_created_metrics()  # type: ignore[no-untyped-call]

REQUESTS = Counter("bo_http_requests", "Requests answered.", ["method", "route", "status"])
REQUEST_SECONDS = Histogram(
    "bo_http_request_seconds",
    "Time to the end of the answer; claims that wait and event streams take as long as they wait.",
    ["method", "route"],
    buckets=SECONDS,
)
CLAIMS = Counter(
    "bo_claims", "Answers to claims: given, waiting (202), none (waiting cannot help).", ["outcome"]
)
TELLS = Counter(
    "bo_tells", "Trials closed or given back by their workers, by the state that followed.", ["state"]
)
WAITING = Gauge("bo_waiting_claims", "Claims that wait for a suggestion.", multiprocess_mode="livesum")


@dataclass(frozen=True, slots=True, eq=False)
class _Counted(Collector):
    """The census and the totals as Prometheus families."""

    census: Census
    totals: Totals
    connections: Connections | None

    def collect(self) -> Iterator[Metric]:
        yield from _now(self.census)
        yield from _ever(self.totals)
        if self.connections is not None:
            yield _gauge(
                "bo_database_connections",
                "Connections of the process that answers.",
                "state",
                {
                    "in_use": self.connections.n_in_use,
                    "idle": self.connections.n_idle,
                    "limit": self.connections.limit,
                },
            )


def exposition(census: Census, totals: Totals, connections: Connections | None) -> bytes:
    """Everything in Prometheus' text format."""
    counted = CollectorRegistry(auto_describe=False)
    counted.register(_Counted(census, totals, connections))
    return generate_latest(_requests()) + generate_latest(counted)


def _requests() -> CollectorRegistry:
    folder = os.environ.get(SHARED_FOLDER)
    if folder is None:
        return REGISTRY
    for path in Path(folder).glob("gauge_live*_*.db"):
        pid = path.stem.rpartition("_")[2]
        if pid.isdigit() and not _is_alive(int(pid)):
            # what it counted stays, what it was doing does not
            path.unlink(missing_ok=True)
    shared = CollectorRegistry()
    MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
    return shared


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _now(census: Census) -> Iterable[Metric]:
    yield _gauge("bo_studies", "Studies by state.", "state", census.studies)
    yield _gauge("bo_trials", "Trials by state.", "state", census.trials)
    jobs = GaugeMetricFamily(
        "bo_jobs", "Jobs: due, resting after a crash, running.", labels=["queue", "state"]
    )
    oldest = GaugeMetricFamily(
        "bo_job_oldest_seconds", "How long the job that waits longest is due.", labels=["queue"]
    )
    for queue, found in census.queues.items():
        for state, n in (("due", found.n_due), ("resting", found.n_resting), ("running", found.n_running)):
            jobs.add_metric([queue.value, state], n)
        oldest.add_metric([queue.value], found.oldest_seconds)
    yield from (jobs, oldest)
    yield _gauge(
        "bo_suggestions",
        "Prepared suggestions of active studies: fresh, or overtaken by more results than their study bears.",
        "freshness",
        {"fresh": census.n_fresh, "stale": census.n_stale},
    )
    roles: dict[str, int] = {}
    for process in census.processes:
        roles[process.role.value] = roles.get(process.role.value, 0) + 1
    yield _gauge("bo_processes", "Relays and compute workers heard of lately.", "role", roles)
    yield GaugeMetricFamily(
        "bo_breakers_open", "Studies whose model is bypassed after crashes.", value=census.n_breakers_open
    )
    yield _gauge(
        "bo_webhook_deliveries",
        "Messages to webhooks: waiting for a try, given up after the last one.",
        "state",
        {"waiting": census.n_deliveries_waiting, "given_up": census.n_deliveries_given_up},
    )
    yield GaugeMetricFamily(
        "bo_pushes_waiting",
        "Trials announced to a fleet for which nobody came yet.",
        value=census.n_pushes_waiting,
    )


def _ever(totals: Totals) -> Iterable[Metric]:
    yield _counter(
        "bo_events", "Events by kind.", ["kind"], {(kind,): n for kind, n in totals.events.items()}
    )
    by = ["surrogate", "device"]
    fits = totals.fits
    yield _counter("bo_fits", "Runs of generation.", by, {k: f.n for k, f in fits.items()})
    yield _counter(
        "bo_fit_fallbacks",
        "Those that ended on another rung of the ladder than the study asked for.",
        by,
        {k: f.n_fallbacks for k, f in fits.items()},
    )
    yield _counter("bo_fit_seconds", "What they took.", by, {k: f.seconds for k, f in fits.items()})
    yield CounterMetricFamily(
        "bo_leases_expired",
        "Attempts that ended because their worker was silent.",
        value=totals.n_leases_expired,
    )
    yield _counter(
        "bo_job_crashes",
        "Jobs that raised, or whose worker died.",
        ["surrogate"],
        {(surrogate,): n for surrogate, n in totals.crashes.items()},
    )
    llm = totals.llm
    yield _counter(
        "bo_llm_calls", "Calls of a language model.", ["model"], {(m,): t.n for m, t in llm.items()}
    )
    tokens: dict[tuple[str, ...], int] = {(m, "prompt"): t.prompt_tokens for m, t in llm.items()}
    tokens |= {(m, "completion"): t.completion_tokens for m, t in llm.items()}
    yield _counter("bo_llm_tokens", "Their tokens.", ["model", "kind"], tokens)
    yield _counter("bo_llm_cost", "Their price.", ["model"], {(m,): t.cost for m, t in llm.items()})
    yield _counter("bo_llm_seconds", "What they took.", ["model"], {(m,): t.seconds for m, t in llm.items()})


def _gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counter(name: str, text: str, labels: list[str], values: Mapping[Any, Any]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family
