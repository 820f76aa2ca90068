"""Each stopping rule, alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bo_service.domain.ids import ProjectId, StudyId
from bo_service.domain.spec import StudySpec
from bo_service.domain.stopping import n_startable, reason_to_stop
from bo_service.domain.study import Study
from bo_service.domain.trial import TrialState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DONE, FAILED, RUNNING = TrialState.COMPLETED, TrialState.FAILED, TrialState.RUNNING


def study(
    stopping: dict[str, Any], goal: str = "minimize", parallelism: int | None = None, **fields: Any
) -> Study:
    document = {
        "name": "s",
        "parameters": [{"type": "bool", "name": "b"}],
        "metrics": [{"name": "loss", "goal": goal}],
        "stopping": stopping,
        "parallelism": parallelism,
    }
    made = Study(
        id=StudyId("s"),
        project_id=ProjectId("p"),
        spec=StudySpec.model_validate(document),
        seed=0,
        created_at=NOW,
        updated_at=NOW,
    )
    return replace(made, **fields)


@pytest.mark.parametrize(
    ("stopping", "fields", "stops"),
    [
        ({}, {"counts": {DONE: 10**6}}, False),
        ({"max_trials": 5}, {"counts": {DONE: 4, RUNNING: 1}}, False),
        ({"max_trials": 5}, {"counts": {DONE: 4, FAILED: 1}}, True),
        ({"max_trials": 5}, {"counts": {DONE: 6}, "n_given": 3}, False),
        ({"max_cost": 10}, {"cost": 9.9}, False),
        ({"max_cost": 10}, {"cost": 10.0}, True),
        ({"target": 0.1}, {"best_value": 0.2}, False),
        ({"target": 0.1}, {"best_value": 0.1}, True),
        ({"target": 0.1}, {}, False),
        (
            {"no_improvement_trials": 3},
            {"counts": {DONE: 5}, "best_value": 1.0, "last_improvement": 3},
            False,
        ),
        ({"no_improvement_trials": 3}, {"counts": {DONE: 6}, "best_value": 1.0, "last_improvement": 3}, True),
        ({"no_improvement_trials": 3}, {"counts": {FAILED: 6}}, False),
        ({"max_failure_rate": 0.5}, {"counts": {FAILED: 4}}, False),
        ({"max_failure_rate": 0.5}, {"counts": {FAILED: 5, DONE: 5}}, False),
        ({"max_failure_rate": 0.5}, {"counts": {FAILED: 6, DONE: 5}}, True),
    ],
)
def test_a_rule_stops_when_it_holds(stopping, fields, stops: bool) -> None:
    reason = reason_to_stop(study(stopping, **fields), now=NOW)
    assert (reason is not None) == stops
    if reason is not None:
        assert reason.startswith(next(iter(stopping)))


def test_a_target_is_reached_from_below_when_larger_is_better() -> None:
    assert reason_to_stop(study({"target": 0.9}, "maximize", best_value=0.8), now=NOW) is None
    assert reason_to_stop(study({"target": 0.9}, "maximize", best_value=0.95), now=NOW) is not None


def test_wall_time_counts_from_creation() -> None:
    limited = study({"max_seconds": 60})
    assert reason_to_stop(limited, now=NOW + timedelta(seconds=59)) is None
    assert reason_to_stop(limited, now=NOW + timedelta(seconds=60)) is not None


@pytest.mark.parametrize(
    ("stopping", "parallelism", "counts", "expected"),
    [
        ({}, None, {}, (10**9, None)),
        ({}, 2, {RUNNING: 1}, (1, "parallelism")),
        ({"max_trials": 5}, None, {DONE: 3, RUNNING: 1}, (1, "budget")),
        ({"max_trials": 5}, 8, {DONE: 3, RUNNING: 2}, (0, "budget")),
        ({"max_trials": 50}, 2, {RUNNING: 2}, (0, "parallelism")),
    ],
)
def test_how_many_trials_may_start(stopping, parallelism, counts, expected) -> None:
    assert n_startable(study(stopping, parallelism=parallelism, counts=counts)) == expected
