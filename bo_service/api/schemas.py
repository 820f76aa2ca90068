"""What requests look like on the wire."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from fastapi import Path, Query
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationInfo,
    field_validator,
)

from bo_service.domain.free_json import FreeJson, Text, checked_text
from bo_service.domain.ids import SuggestionId, TrialId
from bo_service.domain.proposal import Measurement
from bo_service.domain.records import Scope
from bo_service.domain.spec import StudyName
from bo_service.domain.trial import TrialState
from bo_service.domain.validation import ID_PATTERN
from bo_service.domain.webhook import LISTENABLE, NoticeKind, WebhookFormat

NON_FINITE: Final = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "infinity": math.inf,
    "-infinity": -math.inf,
}


def _number(value: object) -> object:
    """Accept 'nan' and 'inf' as texts, since JSON has no words for them; refuse true and other texts."""
    if isinstance(value, str) and value.lower() in NON_FINITE:
        return NON_FINITE[value.lower()]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("give a number, or one of the texts 'nan', 'inf', '-inf'")  # noqa: TRY004  pydantic's
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError("the number is too large for a double") from error


AnyNumber = Annotated[
    float,
    BeforeValidator(
        _number,
        json_schema_input_type=float | Literal["nan", "inf", "-inf", "infinity", "-infinity"],
    ),
]


class Body(BaseModel):
    """A request body that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid")


class MeasurementIn(Body):
    """A value and, where known, its standard error."""

    value: AnyNumber
    sem: AnyNumber | None = None


def _measurement(value: object) -> object:
    return value if isinstance(value, Mapping) else {"value": value}


MetricName = Annotated[str, AfterValidator(checked_text), Field(max_length=256)]
AnyMeasurement = Annotated[
    MeasurementIn, BeforeValidator(_measurement, json_schema_input_type=MeasurementIn | AnyNumber)
]
MetricsIn = Annotated[dict[MetricName, AnyMeasurement], Field(min_length=1, max_length=50)]

WorkerName = Annotated[Text, Field(min_length=1, max_length=256)]
Lease = Annotated[Text, Field(min_length=1, max_length=64)]
Reason = Annotated[Text, Field(max_length=65_536)]
Cost = Annotated[float, Field(strict=True, ge=0, le=1e100)]
"""In the user's own unit; so far below the largest double that no sum of costs overflows."""


StudyKey = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._:/-]*$", max_length=128, description="id or name")
]
TrialKey = Annotated[TrialId, Path(pattern=ID_PATTERN)]
SuggestionKey = Annotated[SuggestionId, Path(pattern=ID_PATTERN)]
KeyId = Annotated[str, Path(pattern=ID_PATTERN)]
WebhookKey = Annotated[str, Path(pattern=ID_PATTERN)]
DeliveryKey = Annotated[str, Path(pattern=ID_PATTERN)]

TrialNumber = Annotated[int, Query(ge=1, le=2**31 - 1, description="this trial of the study alone")]
Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[Text, Query(max_length=512, description="next_cursor of the page before")]
EventSeq = Annotated[int, Query(ge=0, le=2**53)]


def _in_utc(at: datetime) -> datetime:
    """The instant; a time without a zone is in UTC."""
    try:
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("lies outside the calendar of years 1 to 9999") from error


def _dated(text: object) -> object:
    # pydantic takes a bare number for seconds since 1970, or milliseconds, whichever it looks like
    if isinstance(text, str) and text.strip().lstrip("+-").replace(".", "", 1).isdigit():
        raise ValueError("give a date and time such as 2026-01-31T12:00:00Z")
    return text


Instant = Annotated[datetime, BeforeValidator(_dated), AfterValidator(_in_utc)]


def measurements(metrics: Mapping[str, MeasurementIn]) -> dict[str, Measurement]:
    """The metrics of a request as the domain has them."""
    return {name: Measurement(value=m.value, sem=m.sem) for name, m in metrics.items()}


class ReasonIn(Body):
    """Why, for the record."""

    reason: Reason | None = None


class BranchIn(Body):
    """The new study's name and the fields of its specification that differ."""

    name: StudyName
    changes: FreeJson = Field(default_factory=dict)


class ClaimIn(Body):
    """A worker asks for trials."""

    worker: WorkerName
    count: Annotated[StrictInt, Field(ge=1, le=100)] = 1
    wait_seconds: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] = 0.0
    fixed: FreeJson = Field(default_factory=dict)
    lease_seconds: Annotated[float, Field(strict=True, ge=1, le=86_400)] | None = None
    reclaim: StrictBool = True
    push: Annotated[Text, Field(max_length=36)] | None = Field(
        None, description="the push in the message that woke the worker: one trial at most, and no waiting"
    )

    @field_validator("push")
    @classmethod
    def _brings_one(cls, push: str | None, info: ValidationInfo) -> str | None:
        if push is not None and (info.data.get("count", 1) != 1 or info.data.get("fixed")):
            raise ValueError("brings one trial as it comes: leave out count and fixed")
        return push


class LeaseIn(Body):
    """Proof that the worker holds the trial."""

    lease: Lease


class ProgressIn(LeaseIn):
    """Intermediate values at a step."""

    step: Annotated[StrictInt, Field(ge=0, le=2**53)]
    metrics: MetricsIn


class CompleteIn(LeaseIn):
    """The final values of a trial."""

    metrics: MetricsIn
    cost: Cost | None = None
    metadata: FreeJson = Field(default_factory=dict)
    stopped_early: StrictBool = False


class FailIn(LeaseIn):
    """An attempt that ended without a result."""

    reason: Reason
    retry: StrictBool | None = None
    exit: Literal["error", "timeout"] = "error"


class InfeasibleIn(LeaseIn):
    """A configuration that cannot be evaluated."""

    reason: Reason = ""


class AttachIn(Body):
    """A finished trial."""

    parameters: FreeJson
    metrics: Annotated[dict[MetricName, AnyMeasurement], Field(max_length=50)] = Field(default_factory=dict)
    state: TrialState = TrialState.COMPLETED
    cost: Cost | None = None
    reason: Reason | None = None
    metadata: FreeJson = Field(default_factory=dict)


class EnqueueIn(Body):
    """A configuration to evaluate next."""

    parameters: FreeJson


class KeyIn(Body):
    """A new API key."""

    name: Annotated[Text, Field(min_length=1, max_length=128)]
    scope: Scope
    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)] | None = None
    expires_in_seconds: Annotated[float, Field(strict=True, ge=1, le=10 * 365 * 86_400)] | None = None


class RotateIn(Body):
    """How long the key that is replaced still works."""

    grace_seconds: Annotated[float, Field(strict=True, ge=0, le=30 * 86_400)] = 0.0


def _listenable(kind: NoticeKind) -> NoticeKind:
    if kind not in LISTENABLE:
        raise ValueError(f"is sent on request alone; choose from {', '.join(LISTENABLE)}")
    return kind


class WebhookIn(Body):
    """Whom to tell, of what."""

    url: Annotated[Text, Field(min_length=1, max_length=2048)]
    kinds: Annotated[
        list[Annotated[NoticeKind, AfterValidator(_listenable)]], Field(min_length=1, max_length=10)
    ] = list(LISTENABLE)
    study: StudyName | None = None
    format: WebhookFormat = WebhookFormat.JSON
