"""What a webhook says: facts as JSON, and one sentence for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from bo_service.domain.study import Study, StudyState
from bo_service.domain.trial import Trial
from bo_service.domain.webhook import NoticeKind, Webhook, WebhookFormat

MAX_REASON: Final = 500
"""Characters of a reason that travel; the study has it in full."""

_SLACK_ESCAPES: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
"""So that a study's name cannot call a channel or hide a link."""


def notice_of(
    kind: NoticeKind, study: Study, *, trial: Trial | None, reason: str | None, at: datetime
) -> dict[str, Any]:
    """The facts; `trial` is the new best one, or the best of a study that ended."""
    reason = reason[:MAX_REASON] if reason else None
    return {
        "type": kind.value,
        "timestamp": at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "text": _sentence(kind, study, trial=trial, reason=reason),
        "data": {
            "study": {"id": study.id, "name": study.spec.name, "state": study.state.value},
            "reason": reason,
            "trial": None if trial is None else _trial(trial),
        },
    }


def ping_of(webhook: Webhook, *, at: datetime) -> dict[str, Any]:
    """The facts of a test."""
    return {
        "type": NoticeKind.PING.value,
        "timestamp": at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "text": "bo-service can reach this webhook.",
        "data": {"webhook": {"id": webhook.id}},
    }


def body_of(payload: Mapping[str, Any], form: WebhookFormat) -> bytes:
    """The message as it is sent; the same bytes for the same payload."""
    if form is WebhookFormat.SLACK:
        payload = {"text": str(payload["text"]).translate(_SLACK_ESCAPES)}
    return json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "id": trial.id,
        "number": trial.number,
        "parameters": dict(trial.parameters),
        "metrics": {name: {"value": m.value, "sem": m.sem} for name, m in trial.measurements.items()},
    }


def _sentence(kind: NoticeKind, study: Study, *, trial: Trial | None, reason: str | None) -> str:
    name, because = study.spec.name, f" ({reason})" if reason else ""
    if kind is NoticeKind.NEW_BEST and trial is not None:
        verb = "is the new best" if len(study.spec.objectives) == 1 else "joined the front"
        return f"Study {name}: trial {trial.number} {verb}, {_values(study, trial)}."
    if kind is NoticeKind.STUDY_FAILED:
        is_over = study.state is StudyState.STOPPED
        happened = "has failed" if is_over else "goes on without its model"
    else:
        happened = "has stopped"
    best = "" if trial is None else f" Best so far: trial {trial.number}, {_values(study, trial)}."
    return f"Study {name} {happened}{because}.{best}"


def _values(study: Study, trial: Trial) -> str:
    found = [(m.name, trial.measurements.get(m.name)) for m in study.spec.objectives]
    return ", ".join(f"{name} = {value.value:.6g}" for name, value in found if value is not None)
