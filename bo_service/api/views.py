"""Nouns as JSON: the same words on every route."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from bo_service.domain.census import Census, Connections, Totals
from bo_service.domain.job import ServiceProcess
from bo_service.domain.proposal import Measurement
from bo_service.domain.records import ApiKey, AuditEntry, Event, EventKind, Fit, Observation
from bo_service.domain.study import Study
from bo_service.domain.suggestion import Suggestion
from bo_service.domain.trial import Attempt, Provenance, Trial, TrialState
from bo_service.domain.webhook import Delivery, DeliveryState, Webhook


def time_view(at: datetime | None) -> str | None:
    """RFC 3339 in UTC."""
    return (
        None if at is None else at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    )


def metrics_view(measurements: Mapping[str, Measurement]) -> dict[str, Any]:
    return {name: {"value": m.value, "sem": m.sem} for name, m in measurements.items()}


def provenance_view(provenance: Provenance) -> dict[str, Any]:
    return provenance.as_json() | {
        "predictions": {
            name: {"median": median, "sd": sd} for name, (median, sd) in provenance.predictions.items()
        }
    }


def study_view(study: Study, *, best: Trial | None = None, n_prepared: int | None = None) -> dict[str, Any]:
    """A study in full."""
    view = study_summary(study) | {"spec": study.spec.model_dump(mode="json")}
    view["best"] = trial_view(best) if best else None
    if n_prepared is not None:
        view["prepared"] = n_prepared
    return view


def study_summary(study: Study) -> dict[str, Any]:
    """A study without its specification, as in lists."""
    return {
        "id": study.id,
        "name": study.spec.name,
        "state": study.state.value,
        "state_reason": study.state_reason,
        "spec_version": study.spec_version,
        "data_version": study.data_version,
        "seed": study.seed,
        "surrogate": study.spec.surrogate.name,
        "created_at": time_view(study.created_at),
        "updated_at": time_view(study.updated_at),
        "counts": {state.value: study.n(state) for state in TrialState},
        "n_trials": study.n_trials,
        "n_given": study.n_given,
        "max_trials": study.spec.stopping.max_trials,
        "cost": study.cost,
        "best_trial_id": study.best_trial_id,
        "best_value": study.best_value,
        "breaker": {"open": study.breaker_reason is not None, "reason": study.breaker_reason},
        "parent_study_id": study.parent_study_id,
    }


def trial_view(trial: Trial) -> dict[str, Any]:
    """A trial without its lease."""
    return {
        "id": trial.id,
        "study_id": trial.study_id,
        "number": trial.number,
        "state": trial.state.value,
        "parameters": trial.parameters,
        "metrics": metrics_view(trial.measurements),
        "cost": trial.cost,
        "worker": trial.worker,
        "attempts": trial.attempt,
        "stop_requested": trial.stop_requested,
        "reason": trial.reason,
        "source": trial.source.value,
        "suggestion_id": trial.suggestion_id,
        "provenance": provenance_view(trial.provenance),
        "metadata": trial.metadata,
        "on_front": trial.on_front,
        "created_at": time_view(trial.created_at),
        "started_at": time_view(trial.started_at),
        "updated_at": time_view(trial.updated_at),
        "closed_at": time_view(trial.closed_at),
        "lease_expires_at": time_view(trial.lease_expires_at),
    }


def claimed_view(trial: Trial) -> dict[str, Any]:
    """A trial with the lease its worker needs."""
    return trial_view(trial) | {
        "lease": trial.lease,
        "attempt": trial.attempt,
        "lease_seconds": trial.lease_seconds,
    }


def attempt_view(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "worker": attempt.worker,
        "started_at": time_view(attempt.started_at),
        "last_heartbeat_at": time_view(attempt.last_heartbeat_at),
        "lease_expires_at": time_view(attempt.lease_expires_at),
        "ended_at": time_view(attempt.ended_at),
        "exit": attempt.exit.value,
    }


def observation_view(observation: Observation) -> dict[str, Any]:
    return {
        "metric": observation.metric,
        "step": observation.step,
        "value": observation.value,
        "sem": observation.sem,
        "recorded_at": time_view(observation.recorded_at),
    }


def suggestion_view(suggestion: Suggestion) -> dict[str, Any]:
    provenance = provenance_view(suggestion.provenance)
    return {
        "id": suggestion.id,
        "study_id": suggestion.study_id,
        "state": suggestion.state.value,
        "source": suggestion.source.value,
        "parameters": suggestion.parameters,
        **provenance,
        "data_version": suggestion.data_version,
        "trial_id": suggestion.trial_id,
        "created_at": time_view(suggestion.created_at),
    }


def fit_view(fit: Fit) -> dict[str, Any]:
    return {
        "id": fit.id,
        "surrogate": fit.surrogate,
        "data_version": fit.data_version,
        "options": fit.options,
        "seconds": fit.seconds,
        "device": fit.device,
        "diagnostics": fit.diagnostics,
        "created_at": time_view(fit.created_at),
    }


def event_view(event: Event) -> dict[str, Any]:
    return {
        "seq": event.seq,
        "kind": event.kind.value,
        "trial_id": event.trial_id,
        "at": time_view(event.at),
        **{name: value for name, value in event.payload.items() if name != "previous_spec"},
    }


def key_view(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scope": key.scope.value,
        "project": key.project,
        "prefix": key.prefix,
        "created_at": time_view(key.created_at),
        "expires_at": time_view(key.expires_at),
        "revoked_at": time_view(key.revoked_at),
    }


def audit_view(entry: AuditEntry) -> dict[str, Any]:
    return {
        "seq": entry.seq,
        "at": time_view(entry.at),
        "action": entry.action,
        "subject": dict(entry.subject),
        "key_id": entry.key_id,
        "key_name": entry.key_name,
        "request_id": entry.request_id,
        "address": entry.address,
    }


def process_view(process: ServiceProcess) -> dict[str, Any]:
    return {
        "name": process.name,
        "role": process.role.value,
        "queues": [queue.value for queue in process.queues],
        "device": process.device,
        "trouble": process.trouble,
        "version": process.version,
        "started_at": time_view(process.started_at),
        "seen_at": time_view(process.seen_at),
    }


def census_view(census: Census, totals: Totals, connections: Connections | None) -> dict[str, Any]:
    """The whole service, in the words of the metrics."""
    happened = totals.events
    return {
        "studies": dict(census.studies),
        "trials": dict(census.trials),
        "queues": {
            queue.value: {
                "due": found.n_due,
                "resting": found.n_resting,
                "running": found.n_running,
                "oldest_seconds": round(found.oldest_seconds, 3),
            }
            for queue, found in census.queues.items()
        },
        "suggestions": {"fresh": census.n_fresh, "stale": census.n_stale},
        "breakers_open": census.n_breakers_open,
        "deliveries": {"waiting": census.n_deliveries_waiting, "given_up": census.n_deliveries_given_up},
        "pushes_waiting": census.n_pushes_waiting,
        "processes": [process_view(process) for process in census.processes],
        "fits": [
            {
                "surrogate": surrogate,
                "device": device,
                "fits": found.n,
                "fallbacks": found.n_fallbacks,
                "seconds": round(found.seconds, 3),
            }
            for (surrogate, device), found in sorted(totals.fits.items())
        ],
        "llm": [
            {
                "model": model,
                "calls": found.n,
                "prompt_tokens": found.prompt_tokens,
                "completion_tokens": found.completion_tokens,
                "cost": found.cost,
                "seconds": round(found.seconds, 3),
            }
            for model, found in sorted(totals.llm.items())
        ],
        "leases_expired": totals.n_leases_expired,
        "trials_started": happened.get(EventKind.TRIAL_STARTED.value, 0),
        "trials_closed": happened.get(EventKind.TRIAL_CLOSED.value, 0),
        "trials_requeued": happened.get(EventKind.TRIAL_REQUEUED.value, 0),
        "job_crashes": happened.get(EventKind.JOB_CRASHED.value, 0),
        "connections": None
        if connections is None
        else {"in_use": connections.n_in_use, "idle": connections.n_idle, "limit": connections.limit},
    }


def webhook_view(webhook: Webhook, *, with_path: bool) -> dict[str, Any]:
    """A webhook without its secret. The path of a chat service's URL is a secret too: not everybody sees it."""
    parts = urlsplit(webhook.url)
    return {
        "id": webhook.id,
        "url": webhook.url if with_path else f"{parts.scheme}://{parts.netloc}/...",
        "kinds": [kind.value for kind in webhook.kinds],
        "study_id": webhook.study_id,
        "format": webhook.format.value,
        "created_at": time_view(webhook.created_at),
        "rotated_at": time_view(webhook.rotated_at),
        "failing_since": time_view(webhook.failing_since),
        "disabled_at": time_view(webhook.disabled_at),
        "disabled_reason": webhook.disabled_reason,
    }


def delivery_view(delivery: Delivery) -> dict[str, Any]:
    return {
        "id": delivery.id,
        "webhook_id": delivery.webhook_id,
        "study_id": delivery.study_id,
        "kind": delivery.kind.value,
        "state": delivery.state.value,
        "tries": delivery.n_tries,
        "status": delivery.status,
        "last_error": delivery.last_error,
        "next_try_at": time_view(delivery.ready_at) if delivery.state is DeliveryState.PENDING else None,
        "payload": dict(delivery.payload),
        "created_at": time_view(delivery.created_at),
        "updated_at": time_view(delivery.updated_at),
    }
