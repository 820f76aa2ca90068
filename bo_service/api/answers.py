"""What answers look like on the wire, for the OpenAPI document alone: no answer passes through these at run time.

Each class mirrors one function of views.py or one dictionary of a route; a test holds them together.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bo_service.domain.records import EventKind, Scope
from bo_service.domain.spec import Metric, StudySpec
from bo_service.domain.study import StudyState
from bo_service.domain.suggestion import SuggestionSource, SuggestionState
from bo_service.domain.trial import AttemptExit, TrialSource, TrialState

Id = Annotated[str, Field(pattern="^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$")]
Count = Annotated[int, Field(ge=0)]
Configuration = dict[str, bool | int | float | str | dict[str, float]]


class Answer(BaseModel):
    """Exactly these fields."""

    model_config = ConfigDict(extra="forbid")


class FieldProblem(Answer):
    """One field at fault."""

    field: str
    reason: str
    hint: str | None


class Problem(BaseModel):
    """A problem document (RFC 9457); some errors add fields of their own."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(pattern="^urn:bo-service:error:[a-z_]+$")]
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    code: Annotated[str, Field(pattern="^[a-z_]+$", description="stable; see docs/errors.md")]
    detail: str
    hint: str = ""
    problems: list[FieldProblem] = []


class Breaker(Answer):
    """Whether the model is bypassed at present, and why."""

    open: bool
    reason: str | None


class StudySummary(Answer):
    """A study as lists show it."""

    id: Id
    name: str
    state: StudyState
    state_reason: str | None
    spec_version: Count
    data_version: Count
    seed: Count
    surrogate: str
    created_at: datetime
    updated_at: datetime
    counts: dict[TrialState, Count]
    n_trials: Count
    n_given: Count
    max_trials: Count | None
    cost: float
    best_trial_id: Id | None
    best_value: float | None
    breaker: Breaker
    parent_study_id: Id | None


class MetricValue(Answer):
    """A reported value; `sem` is its standard error."""

    value: float
    sem: float | None


class Prediction(Answer):
    """Posterior median, and half the width of its central 68 %."""

    median: float
    sd: float | None


class Provenance(Answer):
    """Which model, which data, which seed, why a fallback."""

    generator: str
    surrogate: str | None
    fit_id: Id | None
    data_version: int | None
    seed: int | None
    acquisition_value: float | None
    fallback_reason: str | None
    predictions: dict[str, Prediction]


class Trial(Answer):
    """A trial without its lease."""

    id: Id
    study_id: Id
    number: Annotated[int, Field(ge=1)]
    state: TrialState
    parameters: Configuration
    metrics: dict[str, MetricValue]
    cost: float | None
    worker: str | None
    attempts: Count
    stop_requested: bool
    reason: str | None
    source: TrialSource
    suggestion_id: Id | None
    provenance: Provenance
    metadata: dict[str, Any]
    on_front: bool
    created_at: datetime
    started_at: datetime | None
    updated_at: datetime
    closed_at: datetime | None
    lease_expires_at: datetime | None


class ClaimedTrial(Trial):
    """A trial with the lease its worker needs."""

    lease: str
    attempt: Annotated[int, Field(ge=1)]
    lease_seconds: float


class Claimed(Answer):
    """The trials given, or why there are none and waiting does not help."""

    trials: list[ClaimedTrial]
    reason: str | None
    limited_by: Literal["parallelism", "budget"] | None
    study_state: StudyState


class NothingYet(Claimed):
    """No trial now; ask again after `retry_after_seconds`."""

    retry_after_seconds: float


class Heartbeat(Answer):
    """All a worker needs to know between two reports."""

    lease_expires_at: datetime
    lease_seconds: float
    should_stop: bool
    should_pause: bool


class Attempt(Answer):
    """One worker's go at a trial."""

    number: Annotated[int, Field(ge=1)]
    worker: str
    started_at: datetime
    last_heartbeat_at: datetime
    lease_expires_at: datetime
    ended_at: datetime | None
    exit: AttemptExit


class Observation(Answer):
    """One value at one step; the final value has no step."""

    metric: str
    step: int | None
    value: float
    sem: float | None
    recorded_at: datetime


class Event(BaseModel):
    """Something that happened; each kind adds fields of its own."""

    model_config = ConfigDict(extra="allow")

    seq: Count
    kind: EventKind
    trial_id: Id | None
    at: datetime


class StreamedEvent(Answer):
    """One server-sent event."""

    id: Annotated[str, Field(pattern="^[0-9]+$", description="the event's seq, for Last-Event-ID")]
    event: Annotated[str, Field(description="the event's kind")]
    data: Annotated[str, Field(description="the event as JSON")]


class TrialInFull(Trial):
    """A trial with its attempts, learning curve and late results."""

    attempts_log: list[Attempt]
    observations: list[Observation]
    notes: list[Event]


class Study(StudySummary):
    """A study in full."""

    spec: StudySpec
    best: Trial | None


class StudyInFull(Study):
    """A study with the number of suggestions that lie ready."""

    prepared: Count


class LeftOut(Answer):
    """A trial a branch could not keep."""

    number: Annotated[int, Field(ge=1)]
    reason: str


class Branch(Answer):
    """The new study, and what of the old one it holds."""

    study: StudyInFull
    copied: Count
    left_out: Count
    left_out_reasons: list[LeftOut]


class StudyPage(Answer):
    """Studies, newest first."""

    items: list[StudySummary]
    next_cursor: str | None


class TrialPage(Answer):
    """Trials in the order asked for."""

    items: list[Trial]
    next_cursor: str | None


class Best(Answer):
    """The incumbent, or why there is none."""

    trial: Trial | None
    reason: str | None


class Pareto(Answer):
    """The trials no other dominates, and by what they are compared."""

    items: list[Trial]
    objectives: list[Metric]


class RowProblem(Answer):
    """What is wrong with one row of an import; rows count from 1."""

    row: Annotated[int, Field(ge=1)]
    field: str
    reason: str
    hint: str | None


class Imported(Answer):
    """What an import did, or would do."""

    imported: Count
    refused: Count
    dry_run: bool
    problems: list[RowProblem]


class Suggestion(Provenance):
    """A prepared configuration with its provenance; its own data version is never null."""

    id: Id
    study_id: Id
    state: SuggestionState
    source: SuggestionSource
    parameters: Configuration
    data_version: int
    trial_id: Id | None
    created_at: datetime


class SuggestionPage(Answer):
    """Suggestions, newest first."""

    items: list[Suggestion]


class Fit(Answer):
    """The record of one run of a surrogate, without its state."""

    id: Id
    surrogate: str
    data_version: Count
    options: dict[str, Any]
    seconds: float
    device: str
    diagnostics: dict[str, Any]
    created_at: datetime


class FitPage(Answer):
    """Fits, newest first."""

    items: list[Fit]


class SurrogateAbilities(Answer):
    """What a surrogate can do and wants."""

    needs_model: bool
    multi_output: bool
    gradients: bool
    fantasies: bool
    categorical_input: bool
    queue: Literal["cpu", "gpu", "llm"]
    cost_class: Literal["free", "cheap", "moderate", "expensive"]
    min_observations: Count
    max_sensible_observations: int | None


class Surrogate(Answer):
    """An installed surrogate with the JSON schema of its options."""

    name: str
    summary: str
    abilities: SurrogateAbilities
    options_schema: dict[str, Any]


class SurrogatePage(Answer):
    """Every installed surrogate by name."""

    items: list[Surrogate]


class Key(Answer):
    """An API key without its text.

    `expires_at` is the end it was made with; `revoked_at` the end given to it later, still ahead while the grace of a
    rotation lasts.
    """

    id: Id
    name: str
    scope: Scope
    project: str
    prefix: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class NewKey(Key):
    """A key with its text, shown this once; null in a repeated answer."""

    key: str | None


class KeyPage(Answer):
    """The keys of the project."""

    items: list[Key]


class Alive(Answer):
    """The process answers."""

    status: Literal["ok"]


class Info(Answer):
    """The version, and who the key says you are."""

    version: str
    project: str
    scope: Scope
    key: str
