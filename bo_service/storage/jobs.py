"""Jobs in SQL: the outbox and the queue's truth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, bindparam, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from bo_service.domain.errors import NotFound
from bo_service.domain.ids import JobId, LeaseToken, StudyId, new_id
from bo_service.domain.job import Job, JobKind, JobState, Queue, Role, ServiceProcess
from bo_service.storage.rows import job_from
from bo_service.storage.tables import JobRow, ProcessRow, table_of
from bo_service.telemetry import traceparent

JOBS = table_of(JobRow)
PROCESSES = table_of(ProcessRow)
IN_FLIGHT = (JobState.QUEUED.value, JobState.RUNNING.value)

_IN_FLIGHT = (
    select(JOBS.c.id, JOBS.c.state, JOBS.c.is_dirty)
    .where(
        JOBS.c.study_id == bindparam("study"),
        JOBS.c.kind == bindparam("of_kind"),
        JOBS.c.digest == bindparam("of_digest"),
        JOBS.c.state.in_(IN_FLIGHT),
    )
    .with_for_update()
)
_INSERT = insert(JOBS)
_SENT = update(JOBS).where(JOBS.c.id == bindparam("key"))


def _due(now: datetime, *, job_id: JobId | None = None) -> Select[Any]:
    """Jobs that may run now and that nobody else is taking, longest waiting first.

    One that is named is waited for: whoever asks for it will not be told again soon, and a request that only notes
    that its study changed holds it for a moment.
    """
    due = select(JOBS).where(JOBS.c.state == JobState.QUEUED.value, JOBS.c.ready_at <= now)
    if job_id is not None:
        return due.where(JOBS.c.id == job_id).with_for_update()
    return due.order_by(JOBS.c.ready_at, JOBS.c.id).with_for_update(skip_locked=True)


def digest_of(payload: Mapping[str, Any]) -> str:
    """Equal for equal payloads; jobs of one kind and digest are coalesced."""
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(slots=True)
class SqlJobs:
    """See ports.Jobs; remembers whether this transaction queued anything."""

    connection: Connection
    has_queued: bool = False

    def enqueue(
        self,
        study_id: StudyId,
        kind: JobKind,
        payload: Mapping[str, Any],
        *,
        queue: Queue = Queue.CPU,
        ready_at: datetime | None = None,
        now: datetime,
    ) -> None:
        digest = digest_of(payload)
        wanted = {"study": study_id, "of_kind": kind.value, "of_digest": digest}
        row = self.connection.execute(_IN_FLIGHT, wanted).first()
        if row is not None:
            if row.state == JobState.RUNNING.value and not row.is_dirty:
                self.connection.execute(update(JOBS).where(JOBS.c.id == row.id).values(is_dirty=True))
            return
        self.connection.execute(
            _INSERT,
            {
                "id": new_id(),
                "study_id": study_id,
                "kind": kind.value,
                "digest": digest,
                "queue": queue.value,
                "state": JobState.QUEUED.value,
                "ready_at": ready_at or now,
                "payload": dict(payload),
                "is_dirty": False,
                "n_crashes": 0,
                "trace": traceparent(),
                "created_at": now,
                "updated_at": now,
            },
        )
        self.has_queued = True

    def claim(
        self, *, now: datetime, lease_seconds: float, token: LeaseToken, job_id: JobId | None = None
    ) -> Job | None:
        row = self.connection.execute(_due(now, job_id=job_id).limit(1)).first()
        if row is None:
            return None
        job = replace(
            job_from(row),
            state=JobState.RUNNING,
            token=token,
            is_dirty=False,
            lease_expires_at=now + timedelta(seconds=lease_seconds),
            updated_at=now,
        )
        self.save(job)
        return job

    def to_send(self, *, now: datetime, resend_after: timedelta, limit: int) -> Sequence[Job]:
        query = _due(now).where(or_(JOBS.c.resend_at.is_(None), JOBS.c.resend_at <= now)).limit(limit)
        jobs = [
            job_from(row).sent(now=now, resend_after=resend_after) for row in self.connection.execute(query)
        ]
        if jobs:
            self.connection.execute(
                _SENT, [{"key": j.id, "sent_at": j.sent_at, "resend_at": j.resend_at} for j in jobs]
            )
        return jobs

    def unsend(self, job_ids: Sequence[JobId]) -> None:
        self.connection.execute(
            update(JOBS).where(JOBS.c.id.in_(job_ids)).values(sent_at=None, resend_at=None)
        )

    def get(self, job_id: JobId, *, lock: bool = True) -> Job:
        query = select(JOBS).where(JOBS.c.id == job_id)
        row = self.connection.execute(query.with_for_update() if lock else query).first()
        if row is None:
            raise NotFound("job", job_id)
        return job_from(row)

    def in_flight(self, study_id: StudyId) -> Job | None:
        query = select(JOBS).where(
            JOBS.c.study_id == study_id, JOBS.c.kind == JobKind.ADVANCE.value, JOBS.c.state.in_(IN_FLIGHT)
        )
        row = self.connection.execute(query.order_by(JOBS.c.created_at).limit(1)).first()
        return None if row is None else job_from(row)

    def save(self, job: Job) -> None:
        self.connection.execute(
            update(JOBS)
            .where(JOBS.c.id == job.id)
            .values(
                state=job.state.value,
                is_dirty=job.is_dirty,
                token=job.token,
                lease_expires_at=job.lease_expires_at,
                n_crashes=job.n_crashes,
                error=job.error,
                sent_at=job.sent_at,
                resend_at=job.resend_at,
                ready_at=job.ready_at,
                updated_at=job.updated_at,
            )
        )
        self.has_queued = self.has_queued or job.state is JobState.QUEUED

    def renew(self, job_id: JobId, token: LeaseToken, *, lease_expires_at: datetime) -> bool:
        result = self.connection.execute(
            update(JOBS)
            .where(JOBS.c.id == job_id, JOBS.c.token == token, JOBS.c.state == JobState.RUNNING.value)
            .values(lease_expires_at=lease_expires_at)
        )
        return bool(result.rowcount)

    def expired(self, *, now: datetime) -> Sequence[Job]:
        query = select(JOBS).where(JOBS.c.state == JobState.RUNNING.value, JOBS.c.lease_expires_at < now)
        return [job_from(row) for row in self.connection.execute(query)]

    def running_since(self, *, before: datetime) -> Sequence[Job]:
        query = select(JOBS).where(JOBS.c.state == JobState.RUNNING.value, JOBS.c.updated_at < before)
        return [job_from(row) for row in self.connection.execute(query)]

    def held_under(self, token_prefix: str) -> Sequence[Job]:
        query = select(JOBS).where(
            JOBS.c.state == JobState.RUNNING.value, JOBS.c.token.startswith(token_prefix, autoescape=True)
        )
        return [job_from(row) for row in self.connection.execute(query)]

    def forget_done(self, *, before: datetime) -> int:
        result = self.connection.execute(
            JOBS.delete().where(JOBS.c.state == JobState.DONE.value, JOBS.c.updated_at < before)
        )
        return int(result.rowcount)

    def saw_process(self, process: ServiceProcess) -> None:
        values = {
            "name": process.name,
            "role": process.role.value,
            "queues": [queue.value for queue in process.queues],
            "device": process.device,
            "trouble": process.trouble,
            "is_embedded": process.is_embedded,
            "version": process.version,
            "started_at": process.started_at,
            "seen_at": process.seen_at,
        }
        make = postgresql.insert if self.connection.dialect.name == "postgresql" else sqlite.insert
        statement = make(PROCESSES).values(values)
        self.connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))

    def processes(self, *, since: datetime) -> Sequence[ServiceProcess]:
        query = select(PROCESSES).where(PROCESSES.c.seen_at >= since).order_by(PROCESSES.c.name)
        return [
            ServiceProcess(
                name=row.name,
                role=Role(row.role),
                queues=tuple(Queue(name) for name in row.queues),
                device=row.device,
                trouble=row.trouble,
                is_embedded=row.is_embedded,
                version=row.version,
                started_at=row.started_at,
                seen_at=row.seen_at,
            )
            for row in self.connection.execute(query)
        ]

    def forget_processes(self, *, before: datetime | None = None, name: str | None = None) -> int:
        which = PROCESSES.c.name == name if before is None else PROCESSES.c.seen_at < before
        return int(self.connection.execute(PROCESSES.delete().where(which)).rowcount)
