"""What the routes for those who run the service answer, and those of webhooks; see answers.py."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from bo_service.api.answers import Answer, Count, Id
from bo_service.domain.job import Queue, Role
from bo_service.domain.trial import TrialState
from bo_service.domain.webhook import DeliveryState, NoticeKind, WebhookFormat


class AuditEntry(Answer):
    """Who changed what."""

    seq: Count
    at: datetime
    action: Annotated[str, Field(description="method and route")]
    subject: dict[str, str]
    key_id: Id | None
    key_name: str
    request_id: str
    address: str


class AuditPage(Answer):
    """Changes, newest first."""

    items: list[AuditEntry]
    next_cursor: str | None


class Process(Answer):
    """A relay or compute worker, as it last said of itself."""

    name: str
    role: Role
    queues: list[Queue]
    device: str
    trouble: str | None
    version: str
    started_at: datetime
    seen_at: datetime


class QueueNumbers(Answer):
    """The jobs of one queue."""

    due: Count
    resting: Count
    running: Count
    oldest_seconds: float


class PreparedNumbers(Answer):
    """The prepared suggestions of active studies."""

    fresh: Count
    stale: Count


class FitNumbers(Answer):
    """Fits so far."""

    surrogate: str
    device: str
    fits: Count
    fallbacks: Count
    seconds: float


class LlmNumbers(Answer):
    """Calls of a language model so far."""

    model: str
    calls: Count
    prompt_tokens: Count
    completion_tokens: Count
    cost: float
    seconds: float


class ConnectionNumbers(Answer):
    """Connections to PostgreSQL of the process that answers."""

    in_use: Count
    idle: Count
    limit: Count


class DeliveryNumbers(Answer):
    """The messages to webhooks that are kept."""

    waiting: Count
    given_up: Count


class Status(Answer):
    """The whole service at this moment."""

    studies: dict[str, Count]
    trials: dict[TrialState, Count]
    queues: dict[Queue, QueueNumbers]
    suggestions: PreparedNumbers
    breakers_open: Count
    deliveries: DeliveryNumbers
    pushes_waiting: Count
    processes: list[Process]
    fits: list[FitNumbers]
    llm: list[LlmNumbers]
    leases_expired: Count
    trials_started: Annotated[int, Field(ge=0, description="claims that were given a trial")]
    trials_closed: Count
    trials_requeued: Annotated[int, Field(ge=0, description="given back, or taken from a silent worker")]
    job_crashes: Count
    connections: ConnectionNumbers | None


class Webhook(Answer):
    """Whom to tell, of what; never with its secret."""

    id: Id
    url: str
    kinds: list[NoticeKind]
    study_id: Id | None
    format: WebhookFormat
    created_at: datetime
    rotated_at: datetime | None
    failing_since: datetime | None
    disabled_at: datetime | None
    disabled_reason: str | None


class WebhookWithSecret(Webhook):
    """A webhook with the secret that signs its messages, shown this once; null in a repeated answer."""

    secret: str | None


class WebhookPage(Answer):
    """The webhooks of the project."""

    items: list[Webhook]


class Delivery(Answer):
    """A message and what became of it."""

    id: Id
    webhook_id: Id
    study_id: Id | None
    kind: NoticeKind
    state: DeliveryState
    tries: Count
    status: int | None
    last_error: str | None
    next_try_at: datetime | None
    payload: dict[str, Any]
    created_at: datetime
    updated_at: datetime


class DeliveryPage(Answer):
    """Messages, newest first."""

    items: list[Delivery]
    next_cursor: str | None


class DatabaseCheck(Answer):
    """Whether it answers, and has the tables this version needs."""

    ok: bool
    revision: str | None = None
    reason: str | None = None


class ComputeCheck(Answer):
    """The compute child, or the workers heard of lately."""

    ok: bool
    kind: Literal["embedded", "external"]
    restarts: Count = 0
    queues: tuple[Queue, ...] = ()
    reason: str | None = None


class BrokerCheck(Answer):
    """Whether a relay reaches the broker."""

    ok: bool
    relays: Count
    reason: str | None = None


class Checks(Answer):
    """What was looked at; what could not be is left out."""

    database: DatabaseCheck
    compute: ComputeCheck | None = None
    broker: BrokerCheck | None = None


class Readiness(Answer):
    """Whether the process can serve, and what is missing beside it."""

    status: Literal["ok", "degraded"]
    checks: Checks
