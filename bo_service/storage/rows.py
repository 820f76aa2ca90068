"""Rows to nouns and back."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bo_service.domain.ids import FitId, JobId, LeaseToken, ProjectId, StudyId, SuggestionId, TrialId
from bo_service.domain.job import Job, JobKind, JobState, Queue
from bo_service.domain.lease import Lease
from bo_service.domain.proposal import Measurement
from bo_service.domain.records import ApiKey, AuditEntry, Event, EventKind, Fit, Scope
from bo_service.domain.spec import StudySpec
from bo_service.domain.study import Study, StudyState
from bo_service.domain.suggestion import Suggestion, SuggestionSource, SuggestionState
from bo_service.domain.trial import Attempt, AttemptExit, Provenance, Trial, TrialSource, TrialState

Row = Any
"""A SQLAlchemy row; its columns are declared in tables.py."""


@dataclass(frozen=True, slots=True)
class Prefixed:
    """The columns of a row whose names start alike, under the rest of their names."""

    row: Row
    prefix: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.row, self.prefix + name)


_SPECS: dict[tuple[str, int], StudySpec] = {}
_SPECS_LOCK = threading.Lock()
MAX_SPECS = 256
MAX_ORDERS = 10_000

Order = dict[str, tuple[str, ...]]
"""Names, those of a mixture with the names of its shares."""


def known_spec(study_id: str, version: int) -> StudySpec | None:
    """The specification of one version, where it was parsed not long ago; a version never changes."""
    with _SPECS_LOCK:
        spec = _SPECS.get((study_id, version))
    if spec is not None:
        remember_order(spec, study_id)
    return spec


def parsed_spec(study_id: str, version: int, stored: Mapping[str, Any]) -> StudySpec:
    """The specification of one version, remembered while not too many others are read."""
    spec = known_spec(study_id, version)
    if spec is None:
        spec = StudySpec.model_validate(stored)
        with _SPECS_LOCK:
            while len(_SPECS) >= MAX_SPECS:
                _SPECS.pop(next(iter(_SPECS)))
            _SPECS[study_id, version] = spec
        remember_order(spec, study_id)
    return spec


_ORDERS: dict[str, tuple[Order, Order]] = {}
"""Study to the order of its parameters and of its metrics; neither changes, and every trial is read after its study."""


def remember_order(spec: StudySpec, study_id: str) -> None:
    """Let the study's trials have their names in the order of its specification, which JSONB does not keep."""
    if study_id in _ORDERS:
        return
    parameters = {p.name: tuple(c.name for c in getattr(p, "components", ())) for p in spec.parameters}
    metrics: Order = {metric.name: () for metric in spec.metrics}
    with _SPECS_LOCK:
        while len(_ORDERS) >= MAX_ORDERS:
            _ORDERS.pop(next(iter(_ORDERS)))
        _ORDERS[study_id] = (parameters, metrics)


def in_order(found: dict[str, Any], order: Order) -> dict[str, Any]:
    """The same in this order, shares of mixtures too; what it does not know comes last."""
    sorted_ = {name: found[name] for name in order if name in found} | found
    for name, shares in order.items():
        if shares and name in sorted_:
            sorted_[name] = in_order(sorted_[name], dict.fromkeys(shares, ()))
    return sorted_


def _parameters_of(row: Row) -> dict[str, Any]:
    orders = _ORDERS.get(row.study_id)
    found: dict[str, Any] = row.parameters
    return found if orders is None else in_order(found, orders[0])


def _measurements_of(row: Row) -> dict[str, Measurement]:
    orders = _ORDERS.get(row.study_id)
    found = measurements_from_json(row.measurements)
    return found if orders is None else in_order(found, orders[1])


def study_values(study: Study) -> dict[str, Any]:
    """The columns that change without an edit of the specification."""
    return {
        "state": study.state.value,
        "state_reason": study.state_reason,
        "data_version": study.data_version,
        "next_number": study.next_number,
        "n_given": study.n_given,
        "counts": {state.value: n for state, n in study.counts.items() if n},
        "cost": study.cost,
        "best_trial_id": study.best_trial_id,
        "best_value": study.best_value,
        "last_improvement": study.last_improvement,
        "design_index": study.design_index,
        "breaker_reason": study.breaker_reason,
        "breaker_opened_at": study.breaker_opened_at,
        "updated_at": study.updated_at,
    }


def study_from(row: Row, spec: StudySpec | None = None) -> Study:
    """`spec` is given where the row has none."""
    return Study(
        id=StudyId(row.id),
        project_id=ProjectId(row.project_id),
        spec=parsed_spec(row.id, row.spec_version, row.spec) if spec is None else spec,
        seed=row.seed,
        state=StudyState(row.state),
        state_reason=row.state_reason,
        spec_version=row.spec_version,
        data_version=row.data_version,
        next_number=row.next_number,
        n_given=row.n_given,
        counts={TrialState(state): n for state, n in row.counts.items()},
        cost=row.cost,
        best_trial_id=TrialId(row.best_trial_id) if row.best_trial_id else None,
        best_value=row.best_value,
        last_improvement=row.last_improvement,
        design_index=row.design_index,
        breaker_reason=row.breaker_reason,
        breaker_opened_at=row.breaker_opened_at,
        parent_study_id=StudyId(row.parent_study_id) if row.parent_study_id else None,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def measurements_to_json(measurements: Mapping[str, Measurement]) -> dict[str, Any]:
    return {name: [m.value, m.sem] for name, m in measurements.items()}


def measurements_from_json(stored: Mapping[str, Any]) -> dict[str, Measurement]:
    return {name: Measurement(value=value, sem=sem) for name, (value, sem) in stored.items()}


def trial_values(trial: Trial) -> dict[str, Any]:
    """The columns of a trial that may change."""
    return {
        "state": trial.state.value,
        "measurements": measurements_to_json(trial.measurements),
        "cost": trial.cost,
        "worker": trial.worker,
        "lease": trial.lease,
        "lease_seconds": trial.lease_seconds,
        "lease_expires_at": trial.lease_expires_at,
        "n_attempts": trial.n_attempts,
        "attempt": trial.attempt,
        "stop_requested": trial.stop_requested,
        "reason": trial.reason,
        "metadata": dict(trial.metadata),
        "started_at": trial.started_at,
        "updated_at": trial.updated_at,
        "closed_at": trial.closed_at,
        "closed_version": trial.closed_version,
        "on_front": trial.on_front,
    }


def new_trial_values(trial: Trial) -> dict[str, Any]:
    return trial_values(trial) | {
        "id": trial.id,
        "study_id": trial.study_id,
        "number": trial.number,
        "parameters": dict(trial.parameters),
        "source": trial.source.value,
        "provenance": trial.provenance.as_json(),
        "suggestion_id": trial.suggestion_id,
        "created_at": trial.created_at,
    }


def trial_from(row: Row) -> Trial:
    return Trial(
        id=TrialId(row.id),
        study_id=StudyId(row.study_id),
        number=row.number,
        state=TrialState(row.state),
        parameters=_parameters_of(row),
        source=TrialSource(row.source),
        provenance=Provenance(**row.provenance),
        suggestion_id=SuggestionId(row.suggestion_id) if row.suggestion_id else None,
        measurements=_measurements_of(row),
        cost=row.cost,
        worker=row.worker,
        lease=LeaseToken(row.lease) if row.lease else None,
        lease_seconds=row.lease_seconds,
        lease_expires_at=row.lease_expires_at,
        n_attempts=row.n_attempts,
        attempt=row.attempt,
        stop_requested=row.stop_requested,
        reason=row.reason,
        metadata=row.metadata,
        created_at=row.created_at,
        started_at=row.started_at,
        updated_at=row.updated_at,
        closed_at=row.closed_at,
        closed_version=row.closed_version,
        on_front=row.on_front,
    )


def lease_from(row: Row) -> Lease:
    return Lease(
        trial_id=TrialId(row.id),
        number=row.number,
        state=TrialState(row.state),
        token=LeaseToken(row.lease) if row.lease else None,
        seconds=row.lease_seconds,
        attempt=row.attempt,
        stop_requested=row.stop_requested,
        project_id=ProjectId(row.project_id),
        study_state=StudyState(row.study_state),
    )


def attempt_from(row: Row) -> Attempt:
    return Attempt(
        trial_id=TrialId(row.trial_id),
        number=row.number,
        worker=row.worker,
        lease=LeaseToken(row.lease),
        started_at=row.started_at,
        last_heartbeat_at=row.last_heartbeat_at,
        lease_expires_at=row.lease_expires_at,
        ended_at=row.ended_at,
        exit=AttemptExit(row.exit),
    )


def suggestion_values(suggestion: Suggestion) -> dict[str, Any]:
    return {
        "id": suggestion.id,
        "study_id": suggestion.study_id,
        "state": suggestion.state.value,
        "source": suggestion.source.value,
        "parameters": dict(suggestion.parameters),
        "provenance": suggestion.provenance.as_json(),
        "data_version": suggestion.data_version,
        "is_timeless": suggestion.is_timeless,
        "fixed_key": suggestion.fixed_key,
        "position": suggestion.position,
        "trial_id": suggestion.trial_id,
        "created_at": suggestion.created_at,
    }


def suggestion_from(row: Row) -> Suggestion:
    return Suggestion(
        id=SuggestionId(row.id),
        study_id=StudyId(row.study_id),
        state=SuggestionState(row.state),
        source=SuggestionSource(row.source),
        parameters=_parameters_of(row),
        provenance=Provenance(**row.provenance),
        data_version=row.data_version,
        is_timeless=row.is_timeless,
        fixed_key=row.fixed_key,
        position=row.position,
        trial_id=TrialId(row.trial_id) if row.trial_id else None,
        created_at=row.created_at,
    )


def job_from(row: Row) -> Job:
    return Job(
        id=JobId(row.id),
        study_id=StudyId(row.study_id),
        kind=JobKind(row.kind),
        queue=Queue(row.queue),
        state=JobState(row.state),
        sent_at=row.sent_at,
        resend_at=row.resend_at,
        ready_at=row.ready_at,
        payload=row.payload,
        is_dirty=row.is_dirty,
        token=LeaseToken(row.token) if row.token else None,
        lease_expires_at=row.lease_expires_at,
        n_crashes=row.n_crashes,
        error=row.error,
        trace=row.trace,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def event_from(row: Row) -> Event:
    return Event(
        seq=row.seq,
        study_id=StudyId(row.study_id),
        trial_id=TrialId(row.trial_id) if row.trial_id else None,
        kind=EventKind(row.kind),
        payload=row.payload,
        at=row.at,
    )


def fit_from(row: Row, *, state: bytes | None) -> Fit:
    return Fit(
        id=FitId(row.id),
        study_id=StudyId(row.study_id),
        data_version=row.data_version,
        surrogate=row.surrogate,
        options=row.options,
        inputs=row.inputs,
        state=state,
        diagnostics=row.diagnostics,
        seconds=row.seconds,
        device=row.device,
        created_at=row.created_at,
    )


def key_from(row: Row) -> ApiKey:
    return ApiKey(
        id=row.id,
        project_id=ProjectId(row.project_id),
        project=row.project,
        name=row.name,
        scope=Scope(row.scope),
        key_hash=row.key_hash,
        prefix=row.prefix,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )


def audit_from(row: Row) -> AuditEntry:
    return AuditEntry(
        seq=row.seq,
        project_id=ProjectId(row.project_id),
        key_id=row.key_id,
        key_name=row.key_name,
        action=row.action,
        subject=row.subject,
        request_id=row.request_id,
        address=row.address,
        at=row.at,
    )
