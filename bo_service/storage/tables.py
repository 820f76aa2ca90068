"""The tables; column comments say units, docstrings say which rules the database itself keeps."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy import Table as SqlTable
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime; SQLite, which has no time zones, keeps it naive."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


Json = JSON().with_variant(JSONB(), "postgresql")
BigKey = BigInteger().with_variant(Integer(), "sqlite")
Id = String(36)


class Table(DeclarativeBase):
    """Names every constraint, so that migrations can change them on both databases."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime(), dict[str, Any]: Json, str: Text()}  # noqa: RUF012


def table_of(row: type[Table]) -> SqlTable:
    """The plain table behind a row class, for statements without an ORM session."""
    table = row.__table__
    assert isinstance(table, SqlTable)
    return table


class ProjectRow(Table):
    """A project owns studies and keys; nothing crosses its border."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)
    created_at: Mapped[datetime]


class ApiKeyRow(Table):
    """An API key's hash and reach."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(Id, ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(128))
    scope: Mapped[str] = mapped_column(String(16))
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    prefix: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class AuditRow(Table):
    """Who changed what through the API, written in the transaction of the change."""

    __tablename__ = "audit_log"
    __table_args__ = (
        Index("ix_audit_log_project_id_seq", "project_id", "seq"),
        {"sqlite_autoincrement": True},
    )

    seq: Mapped[int] = mapped_column(BigKey, primary_key=True, autoincrement=True)
    project_id: Mapped[str] = mapped_column(Id, ForeignKey("projects.id", ondelete="CASCADE"))
    key_id: Mapped[str | None] = mapped_column(Id)
    key_name: Mapped[str] = mapped_column(String(128))
    action: Mapped[str] = mapped_column(String(128))
    subject: Mapped[dict[str, Any]]
    request_id: Mapped[str] = mapped_column(String(64))
    address: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime]


class StudyRow(Table):
    """A study with its counters; a name is unique within the project."""

    __tablename__ = "studies"
    __table_args__ = (
        UniqueConstraint("project_id", "name"),
        Index("ix_studies_project_id_updated_at", "project_id", "updated_at"),
        Index(
            "ix_studies_pushed",
            "id",
            sqlite_where=text("is_pushed AND state = 'ACTIVE'"),
            postgresql_where=text("is_pushed AND state = 'ACTIVE'"),
        ),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(Id, ForeignKey("projects.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(128))
    spec: Mapped[dict[str, Any]]
    is_pushed: Mapped[bool] = mapped_column(server_default=false())
    seed: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(16))
    state_reason: Mapped[str | None]
    spec_version: Mapped[int]
    data_version: Mapped[int]
    next_number: Mapped[int]
    n_given: Mapped[int]
    counts: Mapped[dict[str, Any]]
    cost: Mapped[float]
    best_trial_id: Mapped[str | None] = mapped_column(Id)
    best_value: Mapped[float | None]
    last_improvement: Mapped[int]
    design_index: Mapped[int]
    breaker_reason: Mapped[str | None]
    breaker_opened_at: Mapped[datetime | None]
    parent_study_id: Mapped[str | None] = mapped_column(Id, ForeignKey("studies.id", ondelete="SET NULL"))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class TrialRow(Table):
    """A trial; (study, number) is unique for ever."""

    __tablename__ = "trials"
    __table_args__ = (
        UniqueConstraint("study_id", "number"),
        Index("ix_trials_study_id_state_number", "study_id", "state", "number"),
        Index("ix_trials_study_id_updated_at_id", "study_id", "updated_at", "id"),
        Index(
            "ix_trials_lease_expires_at",
            "lease_expires_at",
            sqlite_where=text("lease_expires_at IS NOT NULL"),
            postgresql_where=text("lease_expires_at IS NOT NULL"),
        ),
        Index(
            "ix_trials_front",
            "study_id",
            "number",
            sqlite_where=text("on_front"),
            postgresql_where=text("on_front"),
        ),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    study_id: Mapped[str] = mapped_column(Id, ForeignKey("studies.id", ondelete="CASCADE"))
    number: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    parameters: Mapped[dict[str, Any]]
    source: Mapped[str] = mapped_column(String(16))
    provenance: Mapped[dict[str, Any]]
    suggestion_id: Mapped[str | None] = mapped_column(Id)
    measurements: Mapped[dict[str, Any]]
    cost: Mapped[float | None]
    worker: Mapped[str | None] = mapped_column(String(256))
    lease: Mapped[str | None] = mapped_column(String(64))
    lease_seconds: Mapped[float]
    lease_expires_at: Mapped[datetime | None]
    n_attempts: Mapped[int]
    attempt: Mapped[int]
    stop_requested: Mapped[bool]
    reason: Mapped[str | None]
    # "metadata" is taken on a declarative class
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    updated_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]
    closed_version: Mapped[int | None]
    on_front: Mapped[bool]


class AttemptRow(Table):
    """One worker's go at a trial."""

    __tablename__ = "attempts"

    trial_id: Mapped[str] = mapped_column(Id, ForeignKey("trials.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    worker: Mapped[str] = mapped_column(String(256))
    lease: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[datetime]
    last_heartbeat_at: Mapped[datetime]
    lease_expires_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    exit: Mapped[str] = mapped_column(String(16))


class ObservationRow(Table):
    """(trial, metric, step, attempt) -> value; step -1 holds the final value."""

    __tablename__ = "observations"

    trial_id: Mapped[str] = mapped_column(Id, ForeignKey("trials.id", ondelete="CASCADE"), primary_key=True)
    metric: Mapped[str] = mapped_column(String(64), primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, server_default="0", autoincrement=False)
    value: Mapped[float]
    sem: Mapped[float | None]
    recorded_at: Mapped[datetime]


class SuggestionRow(Table):
    """A prepared configuration."""

    __tablename__ = "suggestions"
    __table_args__ = (
        # in the order in which claims take them
        Index("ix_suggestions_take", "study_id", "state", "fixed_key", "source", "id"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    study_id: Mapped[str] = mapped_column(Id, ForeignKey("studies.id", ondelete="CASCADE"))
    state: Mapped[str] = mapped_column(String(16))
    source: Mapped[str] = mapped_column(String(16))
    parameters: Mapped[dict[str, Any]]
    provenance: Mapped[dict[str, Any]]
    data_version: Mapped[int]
    is_timeless: Mapped[bool]
    fixed_key: Mapped[str] = mapped_column(String(32))
    position: Mapped[int]
    trial_id: Mapped[str | None] = mapped_column(Id)
    created_at: Mapped[datetime]


class FitRow(Table):
    """One run of generation; the state is safetensors bytes."""

    __tablename__ = "fits"
    __table_args__ = (Index("ix_fits_study_id_id", "study_id", "id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    study_id: Mapped[str] = mapped_column(Id, ForeignKey("studies.id", ondelete="CASCADE"))
    data_version: Mapped[int]
    surrogate: Mapped[str] = mapped_column(String(64))
    options: Mapped[dict[str, Any]]
    inputs: Mapped[dict[str, Any]]
    state: Mapped[bytes | None] = mapped_column(LargeBinary)
    diagnostics: Mapped[dict[str, Any]]
    seconds: Mapped[float]
    device: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[datetime]


class JobRow(Table):
    """The outbox; at most one job of a kind and payload digest is in flight for a study."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_state_ready_at", "state", "ready_at"),
        Index(
            "uq_jobs_in_flight",
            "study_id",
            "kind",
            "digest",
            unique=True,
            sqlite_where=text("state IN ('QUEUED', 'RUNNING')"),
            postgresql_where=text("state IN ('QUEUED', 'RUNNING')"),
        ),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    study_id: Mapped[str] = mapped_column(Id, ForeignKey("studies.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(32))
    queue: Mapped[str] = mapped_column(String(16), server_default="cpu")
    state: Mapped[str] = mapped_column(String(16))
    sent_at: Mapped[datetime | None]
    resend_at: Mapped[datetime | None]
    ready_at: Mapped[datetime]
    payload: Mapped[dict[str, Any]]
    is_dirty: Mapped[bool]
    token: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[datetime | None]
    n_crashes: Mapped[int]
    error: Mapped[str | None]
    trace: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class PushRow(Table):
    """A trial announced to a fleet; without a trial it waits for its claim."""

    __tablename__ = "pushes"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    study_id: Mapped[str] = mapped_column(Id, ForeignKey("studies.id", ondelete="CASCADE"), index=True)
    trial_id: Mapped[str | None] = mapped_column(Id)
    created_at: Mapped[datetime]
    sent_at: Mapped[datetime]


class EventRow(Table):
    """Append-only; writers of one study exclude each other, so seq grows in commit order within it."""

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_study_id_seq", "study_id", "seq"),
        Index("ix_events_trial_id", "trial_id"),
        {"sqlite_autoincrement": True},
    )

    seq: Mapped[int] = mapped_column(BigKey, primary_key=True, autoincrement=True)
    study_id: Mapped[str] = mapped_column(Id, ForeignKey("studies.id", ondelete="CASCADE"))
    trial_id: Mapped[str | None] = mapped_column(Id)
    kind: Mapped[str] = mapped_column(String(32))
    payload: Mapped[dict[str, Any]]
    at: Mapped[datetime]


class IdempotencyRow(Table):
    """The reply first given to a request that carried this key."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("ix_idempotency_keys_created_at", "created_at"),)

    project_id: Mapped[str] = mapped_column(
        Id, ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(String(256), primary_key=True)
    request_hash: Mapped[str] = mapped_column(String(64))
    status: Mapped[int]
    body: Mapped[str]
    created_at: Mapped[datetime]


class WorkerRow(Table):
    """When a worker last asked a study for work; says how many suggestions to prepare."""

    __tablename__ = "workers"

    study_id: Mapped[str] = mapped_column(Id, ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True)
    worker: Mapped[str] = mapped_column(String(256), primary_key=True)
    slots: Mapped[int]
    last_seen_at: Mapped[datetime]


class ProcessRow(Table):
    """A compute worker or relay and when it was last heard of."""

    __tablename__ = "processes"
    __table_args__ = ({"info": {"is_archived": False}},)

    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    role: Mapped[str] = mapped_column(String(16), server_default="compute")
    trouble: Mapped[str | None]
    is_embedded: Mapped[bool]
    queues: Mapped[list[str]] = mapped_column(Json)
    device: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(32))
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]


class LlmCallRow(Table):
    """One call of a language model: what it cost, not what it said."""

    __tablename__ = "llm_calls"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    study_id: Mapped[str] = mapped_column(Id, ForeignKey("studies.id", ondelete="CASCADE"), index=True)
    prompt_hash: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(128))
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    cost: Mapped[float | None]
    seconds: Mapped[float]
    created_at: Mapped[datetime]


class WebhookRow(Table):
    """Who wants to hear of a project's studies, or of one; its secret is kept nowhere."""

    __tablename__ = "webhooks"
    __table_args__ = (Index("ix_webhooks_project_id", "project_id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(Id, ForeignKey("projects.id", ondelete="CASCADE"))
    study_id: Mapped[str | None] = mapped_column(Id, ForeignKey("studies.id", ondelete="CASCADE"))
    url: Mapped[str]
    kinds: Mapped[list[str]] = mapped_column(Json)
    format: Mapped[str] = mapped_column(String(16))
    generation: Mapped[int]
    secret_check: Mapped[str] = mapped_column(String(16))
    rotated_at: Mapped[datetime | None]
    failing_since: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None]
    created_at: Mapped[datetime]


class DeliveryRow(Table):
    """A message to a webhook, written in the transaction of what it tells."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_webhook_id_id", "webhook_id", "id"),
        Index(
            "ix_webhook_deliveries_due",
            "webhook_id",
            "ready_at",
            sqlite_where=text("state = 'PENDING'"),
            postgresql_where=text("state = 'PENDING'"),
        ),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    webhook_id: Mapped[str] = mapped_column(Id, ForeignKey("webhooks.id", ondelete="CASCADE"))
    study_id: Mapped[str | None] = mapped_column(Id)
    kind: Mapped[str] = mapped_column(String(32))
    payload: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))
    n_tries: Mapped[int]
    ready_at: Mapped[datetime]
    status: Mapped[int | None]
    last_error: Mapped[str | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
