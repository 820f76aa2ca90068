"""Jobs in SQL: the outbox and the queue's truth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from bo_service.domain.errors import NotFound
from bo_service.domain.ids import JobId, LeaseToken, StudyId, new_id
from bo_service.domain.job import Job, JobKind, JobState
from bo_service.storage.rows import job_from
from bo_service.storage.tables import JobRow, table_of

JOBS = table_of(JobRow)
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


def digest_of(payload: Mapping[str, Any]) -> str:
    """Equal for equal payloads; jobs of one kind and digest are coalesced."""
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(slots=True)
class SqlJobs:
    """See ports.Jobs; remembers whether this transaction queued anything."""

    connection: Connection
    has_queued: bool = False

    def enqueue(self, study_id: StudyId, kind: JobKind, payload: Mapping[str, Any], *, now: datetime) -> None:
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
                "state": JobState.QUEUED.value,
                "payload": dict(payload),
                "is_dirty": False,
                "n_crashes": 0,
                "created_at": now,
                "updated_at": now,
            },
        )
        self.has_queued = True

    def claim(self, *, now: datetime, lease_seconds: float, token: LeaseToken) -> Job | None:
        query = (
            select(JOBS)
            .where(JOBS.c.state == JobState.QUEUED.value)
            .order_by(JOBS.c.created_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        row = self.connection.execute(query).first()
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

    def get(self, job_id: JobId) -> Job:
        row = self.connection.execute(select(JOBS).where(JOBS.c.id == job_id).with_for_update()).first()
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
        query = (
            select(JOBS)
            .where(JOBS.c.state == JobState.RUNNING.value, JOBS.c.lease_expires_at < now)
            .with_for_update(skip_locked=True)
        )
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
