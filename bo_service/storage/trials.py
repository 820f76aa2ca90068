"""Trials, attempts and observations in SQL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, insert, select, update

from bo_service.domain.errors import Conflict, NotFound
from bo_service.domain.ids import StudyId, TrialId
from bo_service.domain.lease import Lease
from bo_service.domain.proposal import Measurement, Parameters
from bo_service.domain.records import Observation, Page
from bo_service.domain.study import Study
from bo_service.domain.trial import Attempt, AttemptExit, Trial, TrialState
from bo_service.storage.cursors import Cursors
from bo_service.storage.rows import (
    Prefixed,
    attempt_from,
    lease_from,
    new_trial_values,
    study_from,
    trial_from,
    trial_values,
)
from bo_service.storage.studies import STUDIES, locked_study
from bo_service.storage.tables import AttemptRow, ObservationRow, TrialRow, table_of

TRIALS = table_of(TrialRow)
ATTEMPTS = table_of(AttemptRow)
OBSERVATIONS = table_of(ObservationRow)

FINAL_STEP: Final = -1
"""How the step of a final value is stored: a primary key has no NULL."""

CHUNK: Final = 2000
OPEN: Final = tuple(state.value for state in TrialState if state.is_open)

_INSERT_TRIAL: Final = insert(TRIALS)
_GET_TRIAL: Final = select(TRIALS).where(TRIALS.c.id == bindparam("wanted"))
_STUDY_COLUMNS: Final = {
    lock: [
        column.label(f"of_study_{column.name}")
        for column in STUDIES.c
        if not (lock and column.name == "spec")
    ]
    for lock in (False, True)
}
_WITH_STUDY: Final = {
    lock: select(TRIALS, *columns)
    .join(STUDIES, TRIALS.c.study_id == STUDIES.c.id)
    .where(TRIALS.c.id == bindparam("wanted"))
    for lock, columns in _STUDY_COLUMNS.items()
}
# PostgreSQL locks in the order of the names, and reads again what it had to wait for
_WITH_STUDY_LOCKED: Final = _WITH_STUDY[True].with_for_update(of=[STUDIES, TRIALS], key_share=True)
_LEASE: Final = (
    select(
        *(TRIALS.c[name] for name in ("id", "number", "state", "lease", "lease_seconds", "attempt")),
        TRIALS.c.stop_requested,
        STUDIES.c.project_id,
        STUDIES.c.state.label("study_state"),
    )
    .join(STUDIES, TRIALS.c.study_id == STUDIES.c.id)
    .where(TRIALS.c.id == bindparam("wanted"))
)
_KEEP_TRIAL: Final = (
    update(TRIALS)
    .where(
        TRIALS.c.id == bindparam("wanted"), TRIALS.c.state == "RUNNING", TRIALS.c.lease == bindparam("token")
    )
    .values(lease_expires_at=bindparam("ends"), updated_at=bindparam("at"))
)
_KEPT: Final = _KEEP_TRIAL.returning(TRIALS.c.id).cte("kept")
_UPDATE_TRIAL: Final = update(TRIALS).where(TRIALS.c.id == bindparam("wanted"))
_RUNNING_OF: Final = (
    select(TRIALS)
    .where(
        TRIALS.c.study_id == bindparam("study"),
        TRIALS.c.state == "RUNNING",
        TRIALS.c.worker == bindparam("name"),
    )
    .order_by(TRIALS.c.number)
    .with_for_update(key_share=True)
)
_FRONT: Final = (
    select(TRIALS).where(TRIALS.c.study_id == bindparam("study"), TRIALS.c.on_front).order_by(TRIALS.c.number)
)
_INSERT_ATTEMPT: Final = insert(ATTEMPTS)
_LATEST_ATTEMPT: Final = update(ATTEMPTS).where(
    ATTEMPTS.c.trial_id == bindparam("trial"), ATTEMPTS.c.number == bindparam("latest")
)
_KEEP_ATTEMPT: Final = _LATEST_ATTEMPT.values(
    last_heartbeat_at=bindparam("at"), lease_expires_at=bindparam("ends")
)
_KEEP_BOTH: Final = _KEEP_ATTEMPT.where(ATTEMPTS.c.trial_id == _KEPT.c.id)
"""PostgreSQL takes it in one statement, the trial first, as every transaction does."""

_END_ATTEMPT: Final = _LATEST_ATTEMPT.where(ATTEMPTS.c.ended_at.is_(None))
_OBSERVED: Final = select(OBSERVATIONS.c.metric, OBSERVATIONS.c.value).where(
    OBSERVATIONS.c.trial_id == bindparam("trial"),
    OBSERVATIONS.c.step == bindparam("at_step"),
    OBSERVATIONS.c.attempt == bindparam("of_attempt"),
)
_INSERT_OBSERVATIONS: Final = insert(OBSERVATIONS)


@dataclass(frozen=True, slots=True)
class SqlTrials:
    """See ports.Trials."""

    connection: Connection

    def add(self, trials: Sequence[Trial]) -> None:
        for start in range(0, len(trials), CHUNK):
            self.connection.execute(
                _INSERT_TRIAL, [new_trial_values(t) for t in trials[start : start + CHUNK]]
            )

    def get(self, trial_id: TrialId) -> Trial:
        row = self.connection.execute(_GET_TRIAL, {"wanted": trial_id}).first()
        if row is None:
            raise NotFound("trial", trial_id)
        return trial_from(row)

    def with_study(self, trial_id: TrialId, *, lock: bool = False) -> tuple[Trial, Study]:
        query = _WITH_STUDY_LOCKED if lock else _WITH_STUDY[False]
        row = self.connection.execute(query, {"wanted": trial_id}).first()
        if row is None:
            raise NotFound("trial", trial_id)
        of_study = Prefixed(row, "of_study_")
        # first, for it knows the order of the trial's names
        study = locked_study(of_study, self.connection) if lock else study_from(of_study)
        return trial_from(row), study

    def lease(self, trial_id: TrialId) -> Lease:
        row = self.connection.execute(_LEASE, {"wanted": trial_id}).first()
        if row is None:
            raise NotFound("trial", trial_id)
        return lease_from(row)

    def keep_lease(self, lease: Lease, *, now: datetime, lease_expires_at: datetime) -> bool:
        which = {"wanted": lease.trial_id, "token": lease.token}
        attempt = {"trial": lease.trial_id, "latest": lease.attempt}
        times = {"ends": lease_expires_at, "at": now}
        if self.connection.dialect.name == "postgresql":
            return bool(self.connection.execute(_KEEP_BOTH, {**which, **attempt, **times}).rowcount)
        if not self.connection.execute(_KEEP_TRIAL, {**which, **times}).rowcount:
            return False
        self.connection.execute(_KEEP_ATTEMPT, {**attempt, **times})
        return True

    def save(self, trial: Trial) -> None:
        self.connection.execute(_UPDATE_TRIAL, {"wanted": trial.id, **trial_values(trial)})

    def _all(self, query: Select[Any], **parameters: Any) -> list[Trial]:
        return [trial_from(row) for row in self.connection.execute(query, parameters)]

    def running_of(self, study_id: StudyId, worker: str) -> Sequence[Trial]:
        return self._all(_RUNNING_OF, study=study_id, name=worker)

    def queued(self, study_id: StudyId, *, limit: int) -> Sequence[Trial]:
        return self._all(
            select(TRIALS)
            .where(TRIALS.c.study_id == study_id, TRIALS.c.state == "QUEUED")
            .order_by(TRIALS.c.number)
            .limit(limit)
        )

    def expired(self, *, now: datetime, limit: int) -> Sequence[Trial]:
        return self._all(
            select(TRIALS)
            .where(TRIALS.c.lease_expires_at.is_not(None), TRIALS.c.lease_expires_at < now)
            .order_by(TRIALS.c.lease_expires_at)
            .limit(limit)
        )

    def front(self, study_id: StudyId) -> Sequence[Trial]:
        return self._all(_FRONT, study=study_id)

    def page(
        self,
        study_id: StudyId,
        *,
        states: Sequence[TrialState] = (),
        worker: str | None = None,
        number: int | None = None,
        updated_since: datetime | None = None,
        cursor: str | None = None,
        limit: int = 100,
        newest_first: bool = False,
    ) -> Page[Trial]:
        query = select(TRIALS).where(TRIALS.c.study_id == study_id)
        if states:
            query = query.where(TRIALS.c.state.in_([state.value for state in states]))
        if worker is not None:
            query = query.where(TRIALS.c.worker == worker)
        if number is not None:
            query = query.where(TRIALS.c.number == number)
        cursors = _cursors(study_id, by_change=updated_since is not None, newest_first=newest_first)
        if updated_since is not None:
            query = _after_change(query.where(TRIALS.c.updated_at >= updated_since), cursor, cursors)
        else:
            query = _after_number(query, cursor, cursors, newest_first=newest_first)
        rows = self.connection.execute(query.limit(limit + 1)).all()
        next_cursor = None
        if len(rows) > limit:
            last = rows[limit - 1]
            next_cursor = (
                cursors.after(last.number)
                if updated_since is None
                else cursors.after(last.updated_at.isoformat(), last.id)
            )
        return Page(items=[trial_from(row) for row in rows[:limit]], next_cursor=next_cursor)

    def known(self, study_id: StudyId, *, after_version: int = -1, up_to_version: int) -> Iterator[Trial]:
        query = (
            select(TRIALS)
            .where(
                TRIALS.c.study_id == study_id,
                TRIALS.c.closed_version > after_version,
                TRIALS.c.closed_version <= up_to_version,
            )
            .order_by(TRIALS.c.number)
        )
        for row in self.connection.execute(query.execution_options(yield_per=CHUNK)):
            yield trial_from(row)

    def open_parameters(self, study_id: StudyId) -> Sequence[Parameters]:
        query = (
            select(TRIALS.c.parameters)
            .where(TRIALS.c.study_id == study_id, TRIALS.c.state.in_(OPEN))
            .order_by(TRIALS.c.number)
        )
        return list(self.connection.execute(query).scalars())

    def add_attempt(self, attempt: Attempt) -> None:
        self.connection.execute(
            _INSERT_ATTEMPT,
            {
                "trial_id": attempt.trial_id,
                "number": attempt.number,
                "worker": attempt.worker,
                "lease": attempt.lease,
                "started_at": attempt.started_at,
                "last_heartbeat_at": attempt.last_heartbeat_at,
                "lease_expires_at": attempt.lease_expires_at,
                "ended_at": attempt.ended_at,
                "exit": attempt.exit.value,
            },
        )

    def renew_attempt(self, trial: Trial, *, now: datetime) -> None:
        self.connection.execute(
            _LATEST_ATTEMPT,
            {
                "trial": trial.id,
                "latest": trial.attempt,
                "last_heartbeat_at": now,
                "lease_expires_at": trial.lease_expires_at,
                "lease": trial.lease,
            },
        )

    def end_attempt(self, trial: Trial, how: AttemptExit, *, now: datetime) -> None:
        values = {"trial": trial.id, "latest": trial.attempt, "ended_at": now, "exit": how.value}
        self.connection.execute(_END_ATTEMPT, values)

    def attempts(self, trial_id: TrialId) -> Sequence[Attempt]:
        query = select(ATTEMPTS).where(ATTEMPTS.c.trial_id == trial_id).order_by(ATTEMPTS.c.number)
        return [attempt_from(row) for row in self.connection.execute(query)]

    def observe(self, trial: Trial, step: int, values: Mapping[str, Measurement], at: datetime) -> None:
        found = self.connection.execute(
            _OBSERVED, {"trial": trial.id, "at_step": step, "of_attempt": trial.attempt}
        )
        known = {row.metric: row.value for row in found}
        for name, measurement in values.items():
            if name in known and known[name] != measurement.value:
                raise Conflict(
                    f"{name} at step {step} is already recorded as {known[name]:g}",
                    hint="a recorded value is final; report under a new step",
                    field=f"metrics.{name}",
                )
        new = [
            _observation(trial, name, step, measurement, at)
            for name, measurement in values.items()
            if name not in known
        ]
        if new:
            self.connection.execute(_INSERT_OBSERVATIONS, new)

    def observe_final(self, trials: Sequence[Trial], at: datetime) -> None:
        rows = [
            _observation(trial, name, FINAL_STEP, measurement, at)
            for trial in trials
            for name, measurement in trial.measurements.items()
        ]
        for start in range(0, len(rows), CHUNK):
            self.connection.execute(_INSERT_OBSERVATIONS, rows[start : start + CHUNK])

    def observations(self, trial_id: TrialId) -> Sequence[Observation]:
        query = (
            select(OBSERVATIONS)
            .where(OBSERVATIONS.c.trial_id == trial_id)
            .order_by(OBSERVATIONS.c.step, OBSERVATIONS.c.metric, OBSERVATIONS.c.attempt)
        )
        # of several attempts at one step the last counts
        latest = {(row.step, row.metric): row for row in self.connection.execute(query)}
        return [
            Observation(
                trial_id=TrialId(row.trial_id),
                metric=row.metric,
                step=None if row.step == FINAL_STEP else row.step,
                attempt=row.attempt,
                value=row.value,
                sem=row.sem,
                recorded_at=row.recorded_at,
            )
            for row in latest.values()
        ]


def _observation(
    trial: Trial, metric: str, step: int, measurement: Measurement, at: datetime
) -> dict[str, Any]:
    return {
        "trial_id": trial.id,
        "metric": metric,
        "step": step,
        "attempt": trial.attempt,
        "value": measurement.value,
        "sem": measurement.sem,
        "recorded_at": at,
    }


def _cursors(study_id: StudyId, *, by_change: bool, newest_first: bool) -> Cursors:
    order = "changed" if by_change else "-number" if newest_first else "number"
    return Cursors(f"trials/{order}", study_id)


def _after_number(
    query: Select[Any], cursor: str | None, cursors: Cursors, *, newest_first: bool
) -> Select[Any]:
    number = TRIALS.c.number
    if cursor is not None:
        (last,) = cursors.read(cursor, int)
        query = query.where(number < last if newest_first else number > last)
    return query.order_by(number.desc() if newest_first else number)


def _after_change(query: Select[Any], cursor: str | None, cursors: Cursors) -> Select[Any]:
    changed, trial_id = TRIALS.c.updated_at, TRIALS.c.id
    if cursor is not None:
        last, last_id = cursors.read(cursor, datetime, str)
        query = query.where((changed > last) | ((changed == last) & (trial_id > last_id)))
    return query.order_by(changed, trial_id)
