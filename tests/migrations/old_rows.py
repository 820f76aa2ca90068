"""Rows as each revision had them: a study at work, by plain SQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, MetaData, Table, inspect

from bo_service.domain.spec import StudySpec
from bo_service.storage.jobs import digest_of

PROJECT, STUDY, KEY, JOB = "p-1", "study-1", "k-1", "j-1"
CLOSED, RUNNING = "t-1", "t-2"
NOW = datetime.now(UTC).replace(microsecond=0)
LATER = NOW + timedelta(hours=1)
AFTER_FIRST = ("push",)
"""Fields that specifications of the first revision did not have."""


def old_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """The specification as the first revision stored it."""
    stored = StudySpec.model_validate(spec).model_dump(mode="json")
    return {name: value for name, value in stored.items() if name not in AFTER_FIRST}


def _trial(trial_id: str, number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": trial_id,
        "study_id": STUDY,
        "number": number,
        "state": "RUNNING",
        "parameters": {"x": 0.25 * number, "k": number},
        "source": "suggestion",
        "provenance": {"generator": "sobol"},
        "suggestion_id": f"s-{number}",
        "measurements": {},
        "lease": f"lease-{number}",
        "lease_seconds": 3600.0,
        "lease_expires_at": LATER,
        "worker": "w",
        "n_attempts": 0,
        "attempt": 1,
        "stop_requested": False,
        "metadata": {"note": "old"},
        "created_at": NOW,
        "started_at": NOW,
        "updated_at": NOW,
        "on_front": False,
    } | changes


def _attempt(trial_id: str, number: int, **changes: Any) -> dict[str, Any]:
    return {
        "trial_id": trial_id,
        "number": 1,
        "worker": "w",
        "lease": f"lease-{number}",
        "started_at": NOW,
        "last_heartbeat_at": NOW,
        "lease_expires_at": LATER,
        "exit": "running",
    } | changes


def _suggestion(number: int, trial_id: str) -> dict[str, Any]:
    return {
        "id": f"s-{number}",
        "study_id": STUDY,
        "state": "CLAIMED",
        "source": "generated",
        "parameters": {"x": 0.25 * number, "k": number},
        "provenance": {"generator": "sobol"},
        "data_version": 0,
        "is_timeless": True,
        "fixed_key": "",
        "position": number - 1,
        "trial_id": trial_id,
        "created_at": NOW,
    }


def _loop(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """A study with a completed trial, a running one, and a job that is due."""
    study = {
        "id": STUDY,
        "project_id": PROJECT,
        "name": spec["name"],
        "spec": old_spec(spec),
        "seed": 7,
        "state": "ACTIVE",
        "spec_version": 1,
        "data_version": 1,
        "next_number": 3,
        "n_given": 0,
        "counts": {"COMPLETED": 1, "RUNNING": 1},
        "cost": 2.5,
        "best_trial_id": CLOSED,
        "best_value": 0.5,
        "last_improvement": 1,
        "design_index": 2,
        "created_at": NOW,
        "updated_at": NOW,
    }
    closed = {
        "state": "COMPLETED",
        "measurements": {"loss": [0.5, None]},
        "cost": 2.5,
        "lease_expires_at": None,
        "closed_at": NOW,
        "closed_version": 1,
        "on_front": True,
    }
    seen = {"trial_id": CLOSED, "metric": "loss", "recorded_at": NOW}
    job = {
        "id": JOB,
        "study_id": STUDY,
        "kind": "advance",
        "digest": digest_of({}),
        "state": "QUEUED",
        "payload": {},
        "is_dirty": False,
        "n_crashes": 0,
        "created_at": NOW,
        "updated_at": NOW,
        "ready_at": NOW,
    }
    return {
        "studies": [study],
        "suggestions": [_suggestion(1, CLOSED), _suggestion(2, RUNNING)],
        "trials": [_trial(CLOSED, 1, **closed), _trial(RUNNING, 2)],
        "attempts": [_attempt(CLOSED, 1, ended_at=NOW, exit="completed"), _attempt(RUNNING, 2)],
        "observations": [{**seen, "step": 3, "value": 0.75}, {**seen, "step": -1, "value": 0.5}],
        "jobs": [job],
        "events": [
            {"study_id": STUDY, "trial_id": CLOSED, "kind": "trial_closed", "payload": {"n": 1}, "at": NOW}
        ],
        "workers": [{"study_id": STUDY, "worker": "w", "slots": 1, "last_seen_at": NOW}],
    }


def _around() -> dict[str, list[dict[str, Any]]]:
    """What stands around studies."""
    key = {
        "id": KEY,
        "project_id": PROJECT,
        "name": "old",
        "scope": "worker",
        "key_hash": "h" * 64,
        "prefix": "bo_old",
        "created_at": NOW,
    }
    reply = {"project_id": PROJECT, "key": "once", "request_hash": "d" * 64, "status": 201, "body": "{}"}
    process = {"name": "c", "queues": ["cpu"], "device": "cpu", "version": "0", "is_embedded": False}
    process |= {"started_at": NOW, "seen_at": NOW}
    webhook = {"id": "w-1", "project_id": PROJECT, "url": "https://hooks.example", "kinds": ["new_best"]}
    webhook |= {"format": "json", "generation": 1, "secret_check": "c", "created_at": NOW}
    delivery = {"id": "d-1", "webhook_id": "w-1", "kind": "new_best", "payload": {}, "state": "PENDING"}
    delivery |= {"n_tries": 0, "ready_at": LATER, "created_at": NOW, "updated_at": NOW}
    deed = {"project_id": PROJECT, "key_name": "old", "action": "create_study", "subject": {}, "at": NOW}
    return {
        "projects": [{"id": PROJECT, "name": "old", "created_at": NOW}],
        "api_keys": [key],
        "idempotency_keys": [{**reply, "created_at": NOW}],
        "compute_workers": [process],
        "processes": [process],
        "webhooks": [webhook],
        "webhook_deliveries": [delivery],
        "audit_log": [{**deed, "request_id": "r", "address": "::1"}],
    }


def insert_old_rows(engine: Engine, spec: dict[str, Any], *, study_id: str) -> dict[str, int]:
    """Fill the tables that are there, with the columns they have; returns how many rows each got.

    The id is another one in every database, since a process remembers specifications by it.
    """
    rows = _around() | _loop(spec)
    filled: dict[str, int] = {}
    with engine.begin() as connection:
        present = inspect(connection).get_table_names()
        is_sqlite = connection.dialect.name == "sqlite"
        for name in [name for name in rows if name in present]:
            found = Table(name, MetaData(), autoload_with=connection, resolve_fks=False)
            for row in rows[name]:
                values = {column: value for column, value in row.items() if column in found.c}
                values |= {column: study_id for column, value in values.items() if value == STUDY}
                if is_sqlite:
                    values = {column: _without_zone(value) for column, value in values.items()}
                connection.execute(found.insert().values(values))
            filled[name] = len(rows[name])
    return filled


def _without_zone(value: Any) -> Any:
    return value.replace(tzinfo=None) if isinstance(value, datetime) else value
