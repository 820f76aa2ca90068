"""Webhooks: who wants to hear of what happens to studies, and each message on its way there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from bo_service.domain.ids import DeliveryId, ProjectId, StudyId, WebhookId

MAX_WEBHOOKS: Final = 100
"""A project has at most so many, so that an improvement writes a bounded number of rows."""

MAX_PENDING: Final = 1000
"""So many messages wait for one webhook; what comes on top is FAILED at once, and no ping is taken."""

PAUSES: Final = tuple(timedelta(seconds=seconds) for seconds in (5, 30, 120, 600, 3600, 21_600))
"""Between the tries of a delivery; one try more than pauses, then it is FAILED."""

MAX_TRIES: Final = len(PAUSES) + 1
JITTER: Final = 0.2
"""A pause is longer by up to this share, so that deliveries that failed together do not come back together."""

DISABLED_AFTER: Final = timedelta(days=3)
"""A webhook that failed at every try for so long is disabled."""

BOTH_SECRETS: Final = timedelta(hours=24)
"""After a rotation messages carry a signature of the old secret too, for so long."""


class NoticeKind(StrEnum):
    """What a webhook may tell."""

    STUDY_FINISHED = "study_finished"
    STUDY_FAILED = "study_failed"
    NEW_BEST = "new_best"
    PING = "ping"
    """Sent on request alone, to try a webhook."""


LISTENABLE: Final = tuple(kind for kind in NoticeKind if kind is not NoticeKind.PING)


class WebhookFormat(StrEnum):
    """The body of its messages: everything as JSON, or a sentence that chat services show as it comes."""

    JSON = "json"
    SLACK = "slack"


class DeliveryState(StrEnum):
    """PENDING -> DELIVERED | FAILED; either -> PENDING when somebody asks for it."""

    PENDING = "PENDING"
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of one try: the receiver's status, or why there is none."""

    status: int | None = None
    error: str | None = None

    @property
    def is_good(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_gone(self) -> bool:
        """The receiver wants no more: 410."""
        return self.status == 410

    @property
    def reason(self) -> str:
        """Why it is not good."""
        if self.error is not None:
            return self.error
        is_elsewhere = self.status is not None and 300 <= self.status < 400
        return f"answered {self.status}" + (": redirects are not followed" if is_elsewhere else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Enabled -> disabled (by 410, or after failing for days) -> enabled by hand."""

    id: WebhookId
    project_id: ProjectId
    study_id: StudyId | None
    """None hears of every study of the project."""
    url: str
    kinds: tuple[NoticeKind, ...]
    format: WebhookFormat
    generation: int = 1
    """Which of its secrets signs; each rotation makes the next."""
    secret_check: str
    """Tells a service with another master key that it cannot sign for this webhook; no secret follows from it."""
    rotated_at: datetime | None = None
    failing_since: datetime | None = None
    """The first failed try since the last good one, or since nothing was left to try."""
    disabled_at: datetime | None = None
    disabled_reason: str | None = None
    created_at: datetime

    def first_of(self, kinds: Iterable[NoticeKind]) -> NoticeKind | None:
        """The first of these it listens to: one happening is told once, under its strongest name."""
        return next((kind for kind in kinds if kind in self.kinds), None)

    def generations(self, now: datetime) -> tuple[int, ...]:
        """Whose secrets sign a message now, the newest first."""
        was_rotated = self.rotated_at is not None and now < self.rotated_at + BOTH_SECRETS
        return (self.generation, self.generation - 1) if was_rotated else (self.generation,)

    def rotated(self, secret_check: str, *, now: datetime) -> Webhook:
        return replace(self, generation=self.generation + 1, secret_check=secret_check, rotated_at=now)

    def after(self, answer: Answer, *, now: datetime) -> Webhook:
        """The webhook after a try: failing, well again, or disabled."""
        if answer.is_good:
            return self if self.failing_since is None else replace(self, failing_since=None)
        failing = replace(self, failing_since=self.failing_since or now)
        if self.disabled_at is not None:
            return failing
        if answer.is_gone:
            return failing.disabled("the receiver answered 410: it wants no more", now=now)
        if now - (failing.failing_since or now) >= DISABLED_AFTER:
            return failing.disabled(f"failed for {DISABLED_AFTER.days} days, last: {answer.reason}", now=now)
        return failing

    def left_alone(self) -> Webhook:
        """The webhook when its last message was given up: how its receiver does from now on, no try tells."""
        return self if self.disabled_at is not None else replace(self, failing_since=None)

    def disabled(self, reason: str, *, now: datetime) -> Webhook:
        return replace(self, disabled_at=now, disabled_reason=reason[:500])

    def enabled(self) -> Webhook:
        return replace(self, failing_since=None, disabled_at=None, disabled_reason=None)


@dataclass(frozen=True, slots=True)
class DueWebhook:
    """A webhook that has a due delivery."""

    id: WebhookId
    project_id: ProjectId
    is_failing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """PENDING -> DELIVERED | FAILED; its id stays the same from try to try, so that receivers know it again."""

    id: DeliveryId
    webhook_id: WebhookId
    study_id: StudyId | None
    kind: NoticeKind
    payload: Mapping[str, Any]
    state: DeliveryState = DeliveryState.PENDING
    n_tries: int = 0
    """Tries begun since it was queued; also the fencing token of the sender that has it."""
    ready_at: datetime
    """When it may be tried next; while somebody sends it, when it may be taken from him."""
    status: int | None = None
    """The receiver's last HTTP status."""
    last_error: str | None = None
    created_at: datetime
    updated_at: datetime

    def taken(self, *, until: datetime) -> Delivery:
        """Being sent; its sender has until then."""
        return replace(self, n_tries=self.n_tries + 1, ready_at=until)

    def after(self, answer: Answer, *, is_last: bool, now: datetime, jitter: float) -> Delivery:
        """Delivered, tried again after a pause, or given up; `jitter` in [0, 1)."""
        tried = replace(self, status=answer.status, updated_at=now)
        if answer.is_good:
            return replace(tried, state=DeliveryState.DELIVERED, last_error=None)
        tried = replace(tried, last_error=answer.reason[:500])
        if is_last or self.n_tries >= MAX_TRIES:
            return replace(tried, state=DeliveryState.FAILED)
        pause = PAUSES[max(self.n_tries - 1, 0)] * (1 + JITTER * jitter)
        return replace(tried, ready_at=now + pause)

    def dropped(self) -> Delivery:
        """FAILED without a try, because too many others wait."""
        return replace(
            self,
            state=DeliveryState.FAILED,
            last_error=f"dropped: {MAX_PENDING} messages were waiting already",
        )

    def requeued(self, *, now: datetime) -> Delivery:
        """PENDING from the start, under the same id."""
        return replace(self, state=DeliveryState.PENDING, n_tries=0, ready_at=now, updated_at=now)
