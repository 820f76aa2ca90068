"""`bo db check`: a healthy database breaks no rule; each way of breaking one is told."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import bindparam, text

from bo_service.bootstrap import Services, broken_invariants
from bo_service.domain.ids import ProjectId
from bo_service.domain.study import Study
from bo_service.storage.invariants import RULES, Rule
from bo_service.storage.tables import UtcDateTime
from tests.steps import claim, complete, fill, new_study, run_jobs

DAMAGE = {
    "_numbers_are_dense": "UPDATE trials SET number = 7 WHERE number = 2",
    "_counters_are_true": "UPDATE studies SET counts = '{}'",
    "_versions_are_true": "UPDATE trials SET closed_version = 99 WHERE number = 1",
    "_bests_are_closed": "UPDATE studies SET best_trial_id = (SELECT id FROM trials WHERE number = 2)",
    "_results_are_recorded_once": "DELETE FROM observations",
    "_running_trials_have_one_attempt": "UPDATE attempts SET lease = 'of another' WHERE ended_at IS NULL",
    "_nothing_is_stuck": "UPDATE trials SET lease_expires_at = :long_ago WHERE state = 'RUNNING'",
    "_suggestions_become_one_trial": "UPDATE trials SET suggestion_id = NULL WHERE number = 1",
    "_pushes_hold_a_running_trial": (
        "INSERT INTO pushes (id, study_id, trial_id, created_at, sent_at)"
        " SELECT id, study_id, id, created_at, created_at FROM trials WHERE number = 1"
    ),
}


@pytest.fixture
def study(services: Services, project: ProjectId, make_spec) -> Study:
    """A study with a completed and a running trial."""
    made = new_study(services, project, make_spec)
    run_jobs(services)
    (first,) = claim(services, made, "one")
    complete(services, first, project, 0.5)
    claim(services, made, "two")
    run_jobs(services)
    return made


def break_it(services: Services, statement: str) -> None:
    damage = text(statement)
    values = {}
    with services.transactions(read_only=False) as (connection, commit):
        if ":long_ago" in statement:
            damage = damage.bindparams(bindparam("long_ago", type_=UtcDateTime()))
            values = {"long_ago": services.transactions.now(connection) - timedelta(hours=1)}
        connection.execute(damage, values)
        commit()


def test_a_healthy_database_breaks_no_rule(services: Services, study: Study) -> None:
    assert broken_invariants(services) == []


def test_trials_evaluated_elsewhere_break_no_rule(services: Services, study: Study) -> None:
    fill(services, study, 3)
    assert broken_invariants(services) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_each_damage_is_told_by_its_rule(services: Services, study: Study, rule: Rule) -> None:
    break_it(services, DAMAGE[rule.__name__])
    with services.transactions(read_only=True) as (connection, _):
        told = list(rule(connection, services.transactions.now(connection)))
    assert told
    assert set(told) <= set(broken_invariants(services))


def test_a_job_nobody_takes_is_told(services: Services, study: Study) -> None:
    with services.uow() as store:
        job = store.jobs.in_flight(study.id)
        assert job is None
    break_it(services, "UPDATE jobs SET state = 'QUEUED', ready_at = :long_ago")
    assert any("nobody takes it" in sentence for sentence in broken_invariants(services))
