"""The store: every repository over one connection, one transaction a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection

from bo_service.orchestrator.ports import Wakeup
from bo_service.storage.engine import Transactions
from bo_service.storage.failures import translated
from bo_service.storage.jobs import SqlJobs
from bo_service.storage.pushes import SqlPushes
from bo_service.storage.records import SqlRecords
from bo_service.storage.studies import SqlStudies
from bo_service.storage.suggestions import SqlSuggestions
from bo_service.storage.trials import SqlTrials
from bo_service.storage.webhooks import SqlWebhooks


@dataclass(slots=True)
class SqlStore:
    """See ports.Store."""

    connection: Connection
    _commit: Callable[[], None]
    _clock: Callable[[Connection], datetime]
    studies: SqlStudies = field(init=False)
    trials: SqlTrials = field(init=False)
    suggestions: SqlSuggestions = field(init=False)
    jobs: SqlJobs = field(init=False)
    pushes: SqlPushes = field(init=False)
    records: SqlRecords = field(init=False)
    webhooks: SqlWebhooks = field(init=False)
    _now: datetime | None = None

    def __post_init__(self) -> None:
        self.studies = SqlStudies(self.connection)
        self.trials = SqlTrials(self.connection)
        self.suggestions = SqlSuggestions(self.connection)
        self.jobs = SqlJobs(self.connection)
        self.pushes = SqlPushes(self.connection)
        self.records = SqlRecords(self.connection)
        self.webhooks = SqlWebhooks(self.connection)

    def now(self) -> datetime:
        """One instant for the whole transaction."""
        if self._now is None:
            self._now = self._clock(self.connection)
        return self._now

    def commit(self) -> None:
        self._commit()


@dataclass(frozen=True, slots=True)
class SqlUnitOfWork:
    """See ports.UnitOfWork."""

    transactions: Transactions
    wakeup: Wakeup

    @contextmanager
    def __call__(self, *, read_only: bool = False) -> Iterator[SqlStore]:
        with translated(), self.transactions(read_only=read_only) as (connection, commit):
            store = SqlStore(connection, commit, self.transactions.now)
            yield store
            committed = not read_only and not connection.in_transaction()
        if not committed:
            return
        if store.jobs.has_queued:
            self.wakeup.compute()
        for study_id in store.records.changed | store.suggestions.changed | store.pushes.changed:
            self.wakeup.study_changed(study_id)
