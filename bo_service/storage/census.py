"""Counting the whole service in SQL. What only grows is counted once and then row by row as it comes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

from alembic.runtime.migration import MigrationContext
from sqlalchemy import ColumnElement, Connection, and_, case, func, select

from bo_service.domain.census import Census, Connections, FitTotals, LlmTotals, QueueCensus, Totals
from bo_service.domain.job import ALIVE, JobState, Queue, ServiceProcess
from bo_service.domain.records import EventKind
from bo_service.domain.study import StudyState
from bo_service.domain.suggestion import SuggestionState
from bo_service.domain.trial import AttemptExit, TrialState
from bo_service.domain.webhook import DeliveryState
from bo_service.storage.engine import Transactions
from bo_service.storage.failures import translated
from bo_service.storage.jobs import SqlJobs
from bo_service.storage.suggestions import made_since
from bo_service.storage.tables import (
    DeliveryRow,
    EventRow,
    JobRow,
    LlmCallRow,
    PushRow,
    StudyRow,
    SuggestionRow,
    table_of,
)
from migrations import VERSION_TABLE

STUDIES, SUGGESTIONS, JOBS = table_of(StudyRow), table_of(SuggestionRow), table_of(JobRow)
EVENTS, LLM_CALLS = table_of(EventRow), table_of(LlmCallRow)
DELIVERIES, PUSHES = table_of(DeliveryRow), table_of(PushRow)

SETTLED_AFTER: Final = timedelta(seconds=35)
"""Events of transactions still open may turn up with lower numbers; no statement runs longer than this by default."""


def take_census(connection: Connection, *, now: datetime) -> Census:
    """Everything as it is now; reads indexes, the studies, suggestions of active studies, and messages still kept."""
    studies, trials, n_breakers = Counter[str](), Counter[str](), 0
    for row in connection.execute(select(STUDIES.c.state, STUDIES.c.counts, STUDIES.c.breaker_reason)):
        studies[row.state] += 1
        trials.update(row.counts)
        n_breakers += row.breaker_reason is not None
    n_fresh, n_stale = _suggestions(connection)
    n_waiting, n_given_up = _deliveries(connection)
    return Census(
        studies=studies,
        trials=trials,
        queues=_queues(connection, now),
        n_fresh=n_fresh,
        n_stale=n_stale,
        processes=tuple(SqlJobs(connection).processes(since=now - ALIVE)),
        n_breakers_open=n_breakers,
        n_deliveries_waiting=n_waiting,
        n_deliveries_given_up=n_given_up,
        n_pushes_waiting=connection.execute(
            select(func.count()).where(PUSHES.c.trial_id.is_(None))
        ).scalar_one(),
    )


def _queues(connection: Connection, now: datetime) -> dict[Queue, QueueCensus]:
    is_due = and_(JOBS.c.state == JobState.QUEUED.value, JOBS.c.ready_at <= now)
    is_resting = and_(JOBS.c.state == JobState.QUEUED.value, JOBS.c.ready_at > now)
    is_running = JOBS.c.state == JobState.RUNNING.value
    query = (
        select(
            JOBS.c.queue,
            _count(is_due).label("due"),
            _count(is_resting).label("resting"),
            _count(is_running).label("running"),
            func.min(case((is_due, JOBS.c.ready_at))).label("oldest"),
        )
        .where(JOBS.c.state.in_((JobState.QUEUED.value, JobState.RUNNING.value)))
        .group_by(JOBS.c.queue)
    )
    found = dict.fromkeys((Queue.CPU, Queue.GPU, Queue.LLM), QueueCensus())
    for row in connection.execute(query):
        waited = 0.0 if row.oldest is None else (now - row.oldest).total_seconds()
        found[Queue(row.queue)] = QueueCensus(
            n_due=row.due, n_resting=row.resting, n_running=row.running, oldest_seconds=max(waited, 0.0)
        )
    return found


def _count(condition: ColumnElement[bool]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def _suggestions(connection: Connection) -> tuple[int, int]:
    """Fresh and stale ones of the active studies, by each study's own `staleness`."""
    n_running = STUDIES.c.counts[TrialState.RUNNING.value].as_integer()
    staleness = func.coalesce(STUDIES.c.spec["staleness"].as_integer(), n_running, 0)
    query = (
        select(_count(made_since(STUDIES.c.data_version - staleness)), func.count())
        .select_from(SUGGESTIONS)
        .join(STUDIES)
        .where(
            STUDIES.c.state == StudyState.ACTIVE.value,
            SUGGESTIONS.c.state == SuggestionState.PREPARED.value,
        )
    )
    n_fresh, n = connection.execute(query).one()
    return int(n_fresh), int(n - n_fresh)


def _deliveries(connection: Connection) -> tuple[int, int]:
    """Messages that wait, and those that were given up."""
    counts = select(DELIVERIES.c.state, func.count()).group_by(DELIVERIES.c.state)
    found = {state: int(n) for state, n in connection.execute(counts)}
    return found.get(DeliveryState.PENDING.value, 0), found.get(DeliveryState.FAILED.value, 0)


@dataclass(slots=True)
class Tally:
    """Events counted."""

    fits: dict[tuple[str, str], FitTotals] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    n_expired: int = 0
    crashes: Counter[str] = field(default_factory=Counter)

    def copy(self) -> Tally:
        return Tally(dict(self.fits), self.events.copy(), self.n_expired, self.crashes.copy())

    def count(self, new: ColumnElement[bool], *, connection: Connection) -> None:
        """Count these events, too."""
        for kind, n in connection.execute(
            select(EVENTS.c.kind, func.count()).where(new).group_by(EVENTS.c.kind)
        ):
            self.events[kind] += n
        of_jobs = (EventKind.FIT_FINISHED.value, EventKind.JOB_CRASHED.value)
        told = (*of_jobs, EventKind.TRIAL_REQUEUED.value, EventKind.TRIAL_CLOSED.value)
        exits = EVENTS.c.kind.in_(of_jobs) | (
            EVENTS.c.payload["exit"].as_string() == AttemptExit.LEASE_EXPIRED.value
        )
        query = select(EVENTS.c.kind, EVENTS.c.payload).where(new, EVENTS.c.kind.in_(told), exits)
        for row in connection.execute(query.execution_options(yield_per=1000)):
            if row.kind == EventKind.FIT_FINISHED.value:
                self._add_fit(row.payload)
            elif row.kind == EventKind.JOB_CRASHED.value:
                self.crashes[str(row.payload.get("surrogate", ""))] += 1
            else:
                self.n_expired += 1

    def _add_fit(self, payload: dict[str, Any]) -> None:
        key = (str(payload.get("surrogate", "")), str(payload.get("device", "")))
        so_far = self.fits.get(key, FitTotals())
        self.fits[key] = replace(
            so_far,
            n=so_far.n + 1,
            n_fallbacks=so_far.n_fallbacks + (payload.get("fallback_reason") is not None),
            seconds=so_far.seconds + float(payload.get("seconds", 0.0)),
        )


@dataclass(slots=True)
class GrowingTotals:
    """What only grows, kept in memory; the first look reads every event.

    Events of which some with lower numbers may still come are counted anew at every look, and none is missed.
    """

    _seq: int = 0
    _settled: Tally = field(default_factory=Tally)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def now(self, settled: datetime, *, connection: Connection) -> Totals:
        """The totals; every transaction that began before `settled` has ended."""
        with self._lock:
            newest = self._newest(connection, settled)
            if newest > self._seq:
                new = and_(EVENTS.c.seq > self._seq, EVENTS.c.seq <= newest)
                self._settled.count(new, connection=connection)
                self._seq = newest
            found = self._settled.copy()
            newest = self._seq
        found.count(EVENTS.c.seq > newest, connection=connection)
        return Totals(
            fits=found.fits,
            events=dict(found.events),
            n_leases_expired=found.n_expired,
            crashes=dict(found.crashes),
            llm=_llm(connection),
        )

    def _newest(self, connection: Connection, settled: datetime) -> int:
        """The last event that is old enough; looked for from the end, where the numbers are."""
        query = (
            select(EVENTS.c.seq)
            .where(EVENTS.c.seq > self._seq, EVENTS.c.at <= settled)
            .order_by(EVENTS.c.seq.desc())
            .limit(1)
        )
        return connection.execute(query).scalar() or self._seq


def _llm(connection: Connection) -> dict[str, LlmTotals]:
    query = select(
        LLM_CALLS.c.model,
        func.count().label("n"),
        func.sum(LLM_CALLS.c.prompt_tokens).label("prompt_tokens"),
        func.sum(LLM_CALLS.c.completion_tokens).label("completion_tokens"),
        func.coalesce(func.sum(LLM_CALLS.c.cost), 0.0).label("cost"),
        func.sum(LLM_CALLS.c.seconds).label("seconds"),
    ).group_by(LLM_CALLS.c.model)
    return {
        row.model: LlmTotals(
            n=row.n,
            prompt_tokens=row.prompt_tokens,
            completion_tokens=row.completion_tokens,
            cost=row.cost,
            seconds=row.seconds,
        )
        for row in connection.execute(query)
    }


@dataclass(frozen=True, slots=True)
class SqlSurvey:
    """See api.context.Survey."""

    transactions: Transactions
    revisions: tuple[str, ...]
    _totals: GrowingTotals = field(default_factory=GrowingTotals)

    def census(self) -> Census:
        with translated(), self.transactions(read_only=True) as (connection, _):
            return take_census(connection, now=self.transactions.now(connection))

    def totals(self) -> Totals:
        # one writer at a time numbers SQLite's events in the order of their commits
        settled = timedelta(0) if self.transactions.is_sqlite else SETTLED_AFTER
        with translated(), self.transactions(read_only=True) as (connection, _):
            now = self.transactions.now(connection)
            return self._totals.now(now - settled, connection=connection)

    def connections(self) -> Connections | None:
        return self.transactions.connections()

    def processes(self) -> Sequence[ServiceProcess]:
        with translated(), self.transactions(read_only=True) as (connection, _):
            return SqlJobs(connection).processes(since=self.transactions.now(connection) - ALIVE)

    def revision(self) -> str | None:
        with translated(), self.transactions(read_only=True) as (connection, _):
            context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
            return context.get_current_revision()
