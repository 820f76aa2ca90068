"""`bo db check`: a healthy database breaks no rule; each way of breaking one is told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, bindparam, event, text

from bo_service.bootstrap import Services, broken_invariants, build_services
from bo_service.domain.ids import ProjectId
from bo_service.domain.proposal import Measurement
from bo_service.domain.spec import PushPolicy
from bo_service.domain.study import Study
from bo_service.orchestrator.attach_trials import GivenTrial, import_trials
from bo_service.orchestrator.record_observation import Outcome
from bo_service.settings import Settings
from bo_service.storage import invariants
from bo_service.storage.invariants import GRACE, RULES, Rule
from bo_service.storage.tables import Json, UtcDateTime
from surrogates.sampling import space_filling
from tests.conftest import _fresh_postgres
from tests.steps import claim, complete, fill, new_study, run_jobs

DELIVERY = (
    "INSERT INTO webhooks (id, project_id, url, kinds, format, generation, secret_check, created_at)"
    " SELECT 'w', project_id, 'https://hooks.example', '[]', 'json', 1, '', created_at FROM studies;"
    "INSERT INTO webhook_deliveries"
    " (id, webhook_id, kind, payload, state, n_tries, ready_at, status, last_error, created_at, updated_at)"
    " SELECT 'd', 'w', 'ping', '{}', %s, :long_ago, :long_ago FROM studies"
)
PUSH = (
    "INSERT INTO pushes (id, study_id, trial_id, created_at, sent_at)"
    " SELECT id, study_id, %s, created_at, %s FROM trials WHERE number <= %d"
)

PUSHED = "UPDATE studies SET is_pushed = true, spec_version = 2, spec = :pushed;"

JOB = "UPDATE jobs SET %s WHERE id = (SELECT min(id) FROM jobs)"

DAMAGE = {
    "_numbers_are_dense": ["UPDATE trials SET number = 7 WHERE number = 2"],
    "_counters_are_true": ["UPDATE studies SET counts = '{}'"],
    "_versions_are_true": ["UPDATE trials SET closed_version = 99 WHERE number = 1"],
    "_bests_are_true": [
        "UPDATE studies SET best_trial_id = (SELECT id FROM trials WHERE number = 2)",
        "UPDATE studies SET best_trial_id = NULL, best_value = NULL",
        "UPDATE studies SET best_value = 0.25",
        "UPDATE trials SET on_front = (number = 2)",
        "UPDATE trials SET on_front = (number = 3)",
        "UPDATE trials SET on_front = (number IN (1, 3))",
        """UPDATE trials SET measurements = '{"loss": [0.25, null]}' WHERE number = 3""",
        """UPDATE trials SET measurements = '{"loss": [0.75, null]}' WHERE number = 1""",
        "UPDATE trials SET state = 'FAILED' WHERE number = 1",
    ],
    "_results_are_recorded_once": ["DELETE FROM observations"],
    "_running_trials_have_one_attempt": [
        "UPDATE attempts SET lease = 'of another' WHERE ended_at IS NULL",
    ],
    "_nothing_is_stuck": [
        "UPDATE trials SET lease_expires_at = :long_ago WHERE state = 'RUNNING'",
        "UPDATE trials SET lease_expires_at = NULL WHERE state = 'RUNNING'",
        JOB % "state = 'RUNNING', token = 't', lease_expires_at = :long_ago",
        JOB % "state = 'RUNNING', token = 't', lease_expires_at = NULL",
        JOB % "state = 'QUEUED', ready_at = :long_ago",
    ],
    "_suggestions_become_one_trial": ["UPDATE trials SET suggestion_id = NULL WHERE number = 1"],
    "_pushes_hold_a_running_trial": [
        PUSH % ("id", "created_at", 1),
    ],
    "_pushes_fit_their_study": [
        PUSH % ("NULL", "created_at", 1),
        PUSHED + PUSH % ("NULL", "created_at", 3),
        PUSHED + PUSH % ("NULL", ":long_ago", 1),
    ],
    "_deliveries_end_as_answered": [
        DELIVERY % "'DELIVERED', 1, :long_ago, 500, NULL",
        DELIVERY % "'DELIVERED', 1, :long_ago, NULL, NULL",
        DELIVERY % "'FAILED', 7, :long_ago, NULL, NULL",
    ],
    "_somebody_delivers": [DELIVERY % "'PENDING', 0, :long_ago, NULL, NULL"],
}
"""Statements that break each rule, each on its own."""


@pytest.fixture
def study(services: Services, project: ProjectId, make_spec) -> Study:
    """A study with two completed trials, the first the better one, and a running one between them."""
    made = new_study(services, project, make_spec)
    run_jobs(services)
    (first,) = claim(services, made, "one")
    complete(services, first, project, 0.5)
    claim(services, made, "two")
    (third,) = claim(services, made, "three")
    complete(services, third, project, 0.75)
    run_jobs(services)
    return made


def break_it(services: Services, study: Study, statements: str) -> None:
    pushed = study.spec.model_copy(update={"push": PushPolicy(objective="a:b", slots=2)})
    with services.transactions(read_only=False) as (connection, commit):
        known = {
            "long_ago": (services.transactions.now(connection) - timedelta(days=3), UtcDateTime()),
            "pushed": (pushed.model_dump(mode="json"), Json),
        }
        for statement in statements.split(";"):
            named = {name: given for name, given in known.items() if f":{name}" in statement}
            damage = text(statement).bindparams(
                *(bindparam(name, value, type_=kind) for name, (value, kind) in named.items())
            )
            connection.execute(damage)
        commit()


def test_a_healthy_database_breaks_no_rule(services: Services, study: Study) -> None:
    assert broken_invariants(services) == []


def test_trials_evaluated_elsewhere_break_no_rule(services: Services, study: Study) -> None:
    fill(services, study, 3)
    assert broken_invariants(services) == []


def test_each_rule_is_broken_by_a_test() -> None:
    assert [rule.__name__ for rule in RULES] == list(DAMAGE)


@pytest.mark.parametrize(
    ("rule", "statements"),
    [
        pytest.param(rule, statements, id=f"{rule.__name__}-{i}")
        for rule in RULES
        for i, statements in enumerate(DAMAGE[rule.__name__])
    ],
)
def test_each_damage_is_told_by_its_rule(
    services: Services, study: Study, rule: Rule, statements: str
) -> None:
    break_it(services, study, statements)
    with services.transactions(read_only=True) as (connection, _):
        told = list(rule(connection, services.transactions.now(connection) - GRACE))
    assert told
    assert set(told) <= set(broken_invariants(services))


def test_grace_says_how_long_something_may_be_overdue(services: Services, study: Study) -> None:
    assert broken_invariants(services, grace=timedelta(0)) == []
    (open_trial,) = broken_invariants(services, grace=timedelta(days=-1))
    assert "RUNNING though its lease" in open_trial
    break_it(services, study, "UPDATE trials SET lease_expires_at = :long_ago WHERE state = 'RUNNING'")
    assert broken_invariants(services, grace=timedelta(days=4)) == []
    assert len(broken_invariants(services, grace=timedelta(0))) == 1


def test_the_bests_of_several_objectives(services: Services, project: ProjectId, make_spec) -> None:
    metrics = [{"name": "loss", "goal": "minimize"}, {"name": "size", "goal": "minimize"}]
    study = new_study(services, project, make_spec, metrics=metrics)
    values = [(3, 1), (1, 3), (2, 2), (3, 3), (2, 2), (4, 0)]
    points = space_filling(study.spec.space, len(values), seed=5)
    rows = [
        GivenTrial(
            parameters=p,
            outcome=Outcome(
                measurements={"loss": Measurement(value=float(a)), "size": Measurement(value=float(b))}
            ),
        )
        for p, (a, b) in zip(points, values, strict=True)
    ]
    import_trials(study.id, rows, dry_run=False, skip_bad_rows=False, project_id=project, uow=services.uow)
    assert broken_invariants(services) == []
    break_it(services, study, "UPDATE trials SET on_front = (number <> 1 AND on_front)")
    assert any("better than the best" in sentence for sentence in broken_invariants(services))
    break_it(services, study, "UPDATE trials SET on_front = (number IN (1, 2, 3, 4, 6))")
    assert any("another is better" in sentence for sentence in broken_invariants(services))


def test_what_others_commit_meanwhile_breaks_no_rule(services: Services, study: Study) -> None:
    """Rules ask several times, and see one state of the database."""
    n_claimed = 0

    def meanwhile(_connection, _cursor, statement: str, *_) -> None:
        nonlocal n_claimed
        if n_claimed == 0 and "GROUP BY trials.study_id, trials.state" in statement:
            n_claimed += 1
            assert claim(services, study, "meanwhile")

    event.listen(Engine, "after_cursor_execute", meanwhile)
    try:
        assert broken_invariants(services) == []
    finally:
        event.remove(Engine, "after_cursor_execute", meanwhile)
    assert n_claimed == 1


@pytest.mark.postgres
def test_the_check_may_take_longer_than_a_statement_of_the_service(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        home=tmp_path, database_url=_fresh_postgres(postgres_url), database_statement_seconds=0.1
    )
    services = build_services(settings)

    def takes_long(connection: Connection, _: datetime) -> Iterator[str]:
        connection.execute(text("SELECT pg_sleep(0.3)"))
        yield "done"

    monkeypatch.setattr(invariants, "RULES", (takes_long,))
    assert broken_invariants(services) == ["done"]
    services.close()
