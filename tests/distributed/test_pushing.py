"""Trials pushed to a user's Celery fleet: nobody polls, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bo_service.bootstrap import broken_invariants, build_services
from bo_service.client import Client, Study
from tests.conftest import Service
from tests.distributed.conftest import Fleet, RedisServer
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.postgres]

QUADRATIC = "worker_objectives:quadratic"
GATED = "worker_objectives:waits_for_the_gate"


@pytest.fixture
def api(fleet: Fleet) -> Service:
    """The service with a relay and a compute worker, but no fleet."""
    started = fleet.api()
    fleet.relay()
    fleet.compute()
    return started


@pytest.fixture
def client(fleet: Fleet, api: Service) -> Iterator[Client]:
    """After every test of a fleet the database breaks no rule, and no slot is held for nothing."""
    with Client(api.url, api.key) as found:
        yield found
    fleet.stop()
    services = build_services(fleet.settings)
    broken = broken_invariants(services)
    services.close()
    assert broken == []


@pytest.fixture
def gate(fleet: Fleet) -> Path:
    """A folder in which evaluations leave a mark; they end once it holds `open`."""
    folder = fleet.home / "gate"
    folder.mkdir()
    fleet.environment["BO_TEST_GATE"] = str(folder)
    return folder


def n_under_way(gate: Path) -> int:
    return len(list(gate.glob("trial-*")))


def pushed(make_spec, objective: str, *, slots: int = 3, trials: int = 12, **changes) -> dict:
    policy = {"objective": objective, "slots": slots}
    return make_spec(push=policy, stopping={"max_trials": trials}, **changes)


def finished(client: Client, study: Study, *, seconds: float = 120) -> Study:
    until(lambda: client.study(study.id).state == "STOPPED", "the end of the study", seconds=seconds)
    return client.study(study.id)


def n_attempts(client: Client, study: Study) -> Counter[int]:
    """How many trials took how many attempts."""
    return Counter(trial.attempts for trial in client.trials(study.id))


def test_a_pushed_study_runs_to_its_budget_on_two_workers(
    fleet: Fleet, api: Service, client: Client, make_spec
) -> None:
    fleet.evaluate(api, "one", "--objective", QUADRATIC)
    fleet.evaluate(api, "two", "--objective", QUADRATIC)
    spec = pushed(make_spec, QUADRATIC, slots=4, surrogate={"name": "gp"}, initial={"size": 4})
    study = client.create_study(spec)
    found = finished(client, study)
    assert found.counts["COMPLETED"] == 12
    assert found.cost == 30.0
    assert n_attempts(client, study) == {1: 12}
    trials = list(client.trials(study.id))
    assert trials[-1].provenance["generator"].startswith("gp:")
    assert {trial.worker.partition(":")[0] for trial in trials} == {os.uname().nodename}


def test_a_worker_killed_mid_evaluation_loses_nothing(
    fleet: Fleet, api: Service, client: Client, gate: Path, make_spec
) -> None:
    fleet.evaluate(api, "one", "--objective", GATED)
    study = client.create_study(pushed(make_spec, GATED, slots=2, trials=5, retry={"lease_seconds": 2}))
    until(lambda: n_under_way(gate) == 2, "two evaluations")
    fleet.kill("one")
    (gate / "open").touch()
    fleet.evaluate(api, "two", "--objective", GATED)
    assert finished(client, study).counts["COMPLETED"] == 5
    assert n_attempts(client, study) == {1: 3, 2: 2}


def test_redis_flushed_midway_goes_on(
    fleet: Fleet, api: Service, client: Client, redis_server: RedisServer, make_spec
) -> None:
    import redis

    study = client.create_study(pushed(make_spec, QUADRATIC))
    with redis.Redis.from_url(redis_server.url) as broker:
        until(lambda: broker.llen("objectives") == 3, "three messages")
    redis_server.flush()
    fleet.evaluate(api, "one", "--objective", QUADRATIC)
    until(lambda: client.study(study.id).n_closed >= 3, "results after the first flush")
    redis_server.flush()
    assert finished(client, study).counts["COMPLETED"] == 12
    assert n_attempts(client, study) == {1: 12}


def test_duplicates_of_every_message_act_once(
    fleet: Fleet, api: Service, redis_server: RedisServer, client: Client, gate: Path, make_spec
) -> None:
    import redis

    fleet.kill("relay")
    fleet.relay(BO_JOB_RESEND_SECONDS="0.5")
    study = client.create_study(pushed(make_spec, GATED, slots=3, trials=3))
    with redis.Redis.from_url(redis_server.url) as broker:
        until(lambda: broker.llen("objectives") >= 9, "each message three times")
        fleet.kill("relay")
        fleet.evaluate(api, "one", "--objective", GATED, concurrency=6)
        until(lambda: broker.llen("objectives") == 0, "the messages taken")
    until(lambda: n_under_way(gate) == 3, "three evaluations")
    (gate / "open").touch()
    assert finished(client, study).counts["COMPLETED"] == 3
    assert n_attempts(client, study) == {1: 3}


def test_two_relays_never_exceed_the_slots(
    fleet: Fleet, api: Service, redis_server: RedisServer, client: Client, gate: Path, make_spec
) -> None:
    import redis

    fleet.relay("another")
    study = client.create_study(pushed(make_spec, GATED, slots=5, trials=40))
    with redis.Redis.from_url(redis_server.url) as broker:
        until(lambda: broker.llen("objectives") >= 5, "five messages")
    fleet.evaluate(api, "one", "--objective", GATED, concurrency=8)
    until(lambda: n_under_way(gate) >= 5, "five evaluations")
    (gate / "open").touch()
    while (found := client.study(study.id)).state == "ACTIVE":
        assert found.counts["RUNNING"] <= 5
    assert found.counts["COMPLETED"] == 40


def test_an_objective_the_fleet_does_not_allow_is_refused(
    fleet: Fleet, api: Service, client: Client, make_spec
) -> None:
    fleet.evaluate(api, "one", "--objective", QUADRATIC)
    study = client.create_study(pushed(make_spec, "os:abort"))
    until(lambda: "refused: 'os:abort'" in fleet.log("one"), "the refusal")
    assert client.study(study.id).n_trials == 0
    client.edit(study.id, push={"objective": QUADRATIC, "slots": 3})
    assert finished(client, study).counts["COMPLETED"] == 12


def test_a_stopping_worker_ends_its_evaluations_and_a_hurried_one_gives_them_back(
    fleet: Fleet, api: Service, client: Client, gate: Path, make_spec
) -> None:
    warm = fleet.evaluate(api, "warm", "--objective", GATED)
    study = client.create_study(pushed(make_spec, GATED, slots=2, trials=6))
    until(lambda: n_under_way(gate) == 2, "two evaluations")
    warm.send_signal(signal.SIGTERM)
    until(lambda: "Warm" in fleet.log("warm"), "the warm shutdown")
    (gate / "open").touch()
    assert warm.wait(30) == 0
    assert client.study(study.id).counts["COMPLETED"] == 2

    (gate / "open").unlink()
    cold = fleet.evaluate(api, "cold", "--objective", GATED)
    until(lambda: n_under_way(gate) == 4, "two more evaluations")
    cold.send_signal(signal.SIGTERM)
    until(lambda: "Warm" in fleet.log("cold"), "the warm shutdown")
    cold.send_signal(signal.SIGTERM)
    until(lambda: client.study(study.id).counts["QUEUED"] == 2, "both trials given back", seconds=20)
    cold.wait(30)
    (gate / "open").touch()
    fleet.evaluate(api, "last", "--objective", GATED)
    assert finished(client, study).counts["COMPLETED"] == 6
    logs = [client.trial(trial.id).raw["attempts_log"] for trial in client.trials(study.id)]
    assert Counter(attempt["exit"] for log in logs for attempt in log) == {"completed": 6, "released": 2}


def test_a_hanging_and_an_exiting_objective_fail_their_trials(
    fleet: Fleet, api: Service, client: Client, make_spec
) -> None:
    options = ("--objective", "worker_objectives:hangs", "--objective", "worker_objectives:exits")
    fleet.evaluate(api, "one", *options, "--timeout", "1")
    ends = {}
    for name in ("hangs", "exits"):
        study = client.create_study(pushed(make_spec, f"worker_objectives:{name}", slots=1, trials=1))
        found = finished(client, study)
        assert found.counts["FAILED"] == 1
        (trial,) = client.trials(study.id)
        (attempt,) = client.trial(trial.id).raw["attempts_log"]
        ends[name] = (attempt["exit"], trial.reason or "")
    assert ends["hangs"][0] == "timeout"
    assert ends["exits"][0] == "error"
    assert "sys.exit(3)" in ends["exits"][1]


def test_a_celery_application_of_ones_own_evaluates_too(
    fleet: Fleet, api: Service, client: Client, make_spec
) -> None:
    examples = Path(__file__).resolve().parents[2] / "examples"
    environment = fleet.environment | fleet.fleet_environment(api, "own")
    environment["PYTHONPATH"] = os.pathsep.join([str(examples.parent), environment["PYTHONPATH"]])
    study = client.create_study(pushed(make_spec, "fleet:bowl"))
    command = [sys.executable, "-m", "celery", "--app", "fleet", "worker"]
    with (fleet.home / "own.log").open("ab") as log:
        fleet.processes["own"] = subprocess.Popen(
            [*command, "--queues", "objectives", "--concurrency", "2"],
            cwd=examples,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    found = finished(client, study)
    assert found.counts["COMPLETED"] == 12
    assert found.best_value == min((trial.parameters["x"] - 0.3) ** 2 for trial in client.trials(study.id))
