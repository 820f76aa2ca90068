"""Events, fits, keys, stored replies and worker sightings in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, Text, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from bo_service.domain.errors import NotFound
from bo_service.domain.ids import FitId, ProjectId, StudyId, TrialId, new_id
from bo_service.domain.records import WAKING, ApiKey, AuditEntry, Event, Fit, Page, StoredReply
from bo_service.storage.cursors import Cursors
from bo_service.storage.rows import audit_from, event_from, fit_from, key_from
from bo_service.storage.tables import (
    ApiKeyRow,
    AuditRow,
    EventRow,
    FitRow,
    IdempotencyRow,
    ProjectRow,
    WorkerRow,
    table_of,
)

PROJECTS = table_of(ProjectRow)
KEYS = table_of(ApiKeyRow)
AUDIT = table_of(AuditRow)
EVENTS = table_of(EventRow)
FITS = table_of(FitRow)
REPLIES = table_of(IdempotencyRow)
WORKERS = table_of(WorkerRow)

_INSERT_EVENT = insert(EVENTS).inline()
"""Nobody asks for the number it gets."""
_N_SLOTS = select(func.coalesce(func.sum(WORKERS.c.slots), 0)).where(
    WORKERS.c.study_id == bindparam("study"), WORKERS.c.last_seen_at >= bindparam("since")
)
_KEY = [WORKERS.c.study_id, WORKERS.c.worker]
_SQLITE, _POSTGRES = sqlite.insert(WORKERS), postgresql.insert(WORKERS)
_SAW = {
    "sqlite": _SQLITE.on_conflict_do_update(
        index_elements=_KEY,
        set_={"last_seen_at": _SQLITE.excluded.last_seen_at, "slots": _SQLITE.excluded.slots},
    ),
    "postgresql": _POSTGRES.on_conflict_do_update(
        index_elements=_KEY,
        set_={"last_seen_at": _POSTGRES.excluded.last_seen_at, "slots": _POSTGRES.excluded.slots},
    ),
}


_ADD_PROJECT = {
    dialect.dialect.name: dialect.insert(PROJECTS)
    .on_conflict_do_nothing(index_elements=[PROJECTS.c.name])
    .returning(PROJECTS.c.id)
    for dialect in (sqlite, postgresql)
}
_LOCK_REPLY = select(func.pg_advisory_xact_lock(func.hashtextextended(bindparam("name", type_=Text), 0)))
_REPLY = select(REPLIES).where(
    REPLIES.c.project_id == bindparam("of_project"), REPLIES.c.key == bindparam("of_key")
)


@dataclass(frozen=True, slots=True)
class SqlRecords:
    """See ports.Records."""

    connection: Connection
    changed: set[StudyId] = field(default_factory=set)
    """Studies about which somebody who waits should hear after the commit."""

    def add_event(self, event: Event) -> None:
        if event.kind in WAKING:
            self.changed.add(event.study_id)
        self.connection.execute(
            _INSERT_EVENT,
            {
                "study_id": event.study_id,
                "trial_id": event.trial_id,
                "kind": event.kind.value,
                "payload": dict(event.payload),
                "at": event.at,
            },
        )

    def events(
        self, study_id: StudyId, *, after: int, limit: int, trial_id: TrialId | None = None
    ) -> Sequence[Event]:
        query = select(EVENTS).where(EVENTS.c.study_id == study_id, EVENTS.c.seq > after)
        if trial_id is not None:
            query = query.where(EVENTS.c.trial_id == trial_id)
        return [event_from(row) for row in self.connection.execute(query.order_by(EVENTS.c.seq).limit(limit))]

    def add_fit(self, fit: Fit) -> None:
        self.connection.execute(
            insert(FITS),
            {
                "id": fit.id,
                "study_id": fit.study_id,
                "data_version": fit.data_version,
                "surrogate": fit.surrogate,
                "options": dict(fit.options),
                "inputs": dict(fit.inputs),
                "state": fit.state,
                "diagnostics": dict(fit.diagnostics),
                "seconds": fit.seconds,
                "device": fit.device,
                "created_at": fit.created_at,
            },
        )

    def fit(self, fit_id: FitId) -> Fit:
        row = self.connection.execute(select(FITS).where(FITS.c.id == fit_id)).first()
        if row is None:
            raise NotFound("fit", fit_id)
        return fit_from(row, state=row.state)

    def latest_fit(self, study_id: StudyId) -> Fit | None:
        query = select(FITS).where(FITS.c.study_id == study_id, FITS.c.state.is_not(None))
        row = self.connection.execute(query.order_by(FITS.c.id.desc()).limit(1)).first()
        return None if row is None else fit_from(row, state=row.state)

    def fits(self, study_id: StudyId, *, limit: int) -> Sequence[Fit]:
        columns = [column for column in FITS.c if column.name != "state"]
        query = select(*columns).where(FITS.c.study_id == study_id).order_by(FITS.c.id.desc()).limit(limit)
        return [fit_from(row, state=None) for row in self.connection.execute(query)]

    def ensure_project(self, name: str, *, now: datetime) -> ProjectId:
        by_name = select(PROJECTS.c.id).where(PROJECTS.c.name == name)
        found = self.connection.execute(by_name).scalar() or self.add_project(name, now=now)
        # of two that make it at once, the later one finds the earlier one's
        return ProjectId(found or self.connection.execute(by_name).scalar_one())

    def add_project(self, name: str, *, now: datetime) -> ProjectId | None:
        values = {"id": new_id(), "name": name, "created_at": now}
        added = self.connection.execute(_ADD_PROJECT[self.connection.dialect.name], values).scalar()
        return None if added is None else ProjectId(added)

    def lock_project(self, project_id: ProjectId) -> None:
        # weaker than FOR UPDATE: rows that refer to the project are added meanwhile
        query = select(PROJECTS.c.id).where(PROJECTS.c.id == project_id)
        self.connection.execute(query.with_for_update(key_share=True))

    def add_key(self, key: ApiKey) -> None:
        self.connection.execute(
            insert(KEYS),
            {
                "id": key.id,
                "project_id": key.project_id,
                "name": key.name,
                "scope": key.scope.value,
                "key_hash": key.key_hash,
                "prefix": key.prefix,
                "created_at": key.created_at,
                "expires_at": key.expires_at,
            },
        )

    def key_by_hash(self, key_hash: str) -> ApiKey | None:
        query = select(KEYS, PROJECTS.c.name.label("project")).join(PROJECTS)
        row = self.connection.execute(query.where(KEYS.c.key_hash == key_hash)).first()
        return None if row is None else key_from(row)

    def keys(self, project_id: ProjectId) -> Sequence[ApiKey]:
        query = select(KEYS, PROJECTS.c.name.label("project")).join(PROJECTS)
        query = query.where(KEYS.c.project_id == project_id).order_by(KEYS.c.id)
        return [key_from(row) for row in self.connection.execute(query)]

    def key(self, project_id: ProjectId, key_id: str, *, lock: bool = False) -> ApiKey:
        query = select(KEYS, PROJECTS.c.name.label("project")).join(PROJECTS)
        query = query.where(KEYS.c.project_id == project_id, KEYS.c.id == key_id)
        row = self.connection.execute(query.with_for_update(of=KEYS) if lock else query).first()
        if row is None:
            raise NotFound("key", key_id)
        return key_from(row)

    def revoke_key(self, key_id: str, *, at: datetime) -> None:
        self.connection.execute(update(KEYS).where(KEYS.c.id == key_id).values(revoked_at=at))

    def add_audit(self, entry: AuditEntry) -> None:
        self.connection.execute(
            insert(AUDIT),
            {
                "project_id": entry.project_id,
                "key_id": entry.key_id,
                "key_name": entry.key_name,
                "action": entry.action,
                "subject": dict(entry.subject),
                "request_id": entry.request_id,
                "address": entry.address,
                "at": entry.at,
            },
        )

    def audit(self, project_id: ProjectId, *, cursor: str | None, limit: int) -> Page[AuditEntry]:
        query = select(AUDIT).where(AUDIT.c.project_id == project_id)
        cursors = Cursors("audit", project_id)
        if cursor is not None:
            (before,) = cursors.read(cursor, int)
            query = query.where(AUDIT.c.seq < before)
        rows = self.connection.execute(query.order_by(AUDIT.c.seq.desc()).limit(limit + 1)).all()
        found = [audit_from(row) for row in rows[:limit]]
        return Page(items=found, next_cursor=cursors.after(found[-1].seq) if len(rows) > limit else None)

    def reply(self, project_id: ProjectId, key: str) -> StoredReply | None:
        if self.connection.dialect.name == "postgresql":
            # SQLite has one writer at a time anyway
            self.connection.execute(_LOCK_REPLY, {"name": f"{project_id}/{key}"})
        row = self.connection.execute(_REPLY, {"of_project": project_id, "of_key": key}).first()
        if row is None:
            return None
        return StoredReply(request_hash=row.request_hash, status=row.status, body=row.body)

    def remember_reply(self, project_id: ProjectId, key: str, reply: StoredReply, *, now: datetime) -> None:
        self.connection.execute(
            insert(REPLIES),
            {
                "project_id": project_id,
                "key": key,
                "request_hash": reply.request_hash,
                "status": reply.status,
                "body": reply.body,
                "created_at": now,
            },
        )

    def forget_replies(self, *, before: datetime) -> int:
        return int(self.connection.execute(delete(REPLIES).where(REPLIES.c.created_at < before)).rowcount)

    def saw_worker(self, study_id: StudyId, worker: str, *, slots: int, now: datetime) -> None:
        values = {"study_id": study_id, "worker": worker, "slots": slots, "last_seen_at": now}
        self.connection.execute(_SAW[self.connection.dialect.name], values)

    def n_workers(self, study_id: StudyId, *, since: datetime) -> int:
        return int(self.connection.execute(_N_SLOTS, {"study": study_id, "since": since}).scalar_one())
