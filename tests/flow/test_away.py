"""A service that is away for a while costs no evaluation its result."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bo_service.client import Client, Infeasible, TrialHandle, Unreachable
from bo_service.client.evaluate import evaluate
from tests.conftest import Service, StartService
from tests.waiting import until

OBJECTIVES = Path(__file__).parent / "objectives"
PATIENCE_SECONDS = 0.5
AWAY_SECONDS = 3.0


@pytest.fixture(scope="module")
def own_service(start_module_service: StartService) -> Service:
    return start_module_service()


@pytest.fixture
def client(own_service: Service) -> Iterator[Client]:
    with Client(own_service.url, own_service.key, patience_seconds=PATIENCE_SECONDS) as found:
        yield found


@pytest.fixture
def start_evaluating(client: Client, make_spec) -> Callable[[float], TrialHandle]:
    def claimed(lease_seconds: float) -> TrialHandle:
        study = client.create_study(make_spec()).id
        (trial,) = client.claim(study, "w", wait_seconds=20, lease_seconds=lease_seconds).trials
        return TrialHandle(client, trial)

    return claimed


@pytest.fixture
def go_away(own_service: Service) -> Iterator[Callable[[], None]]:
    """Killed now, back when every call lost its patience."""
    returns: list[threading.Timer] = []

    def away() -> None:
        own_service.kill()
        returns.append(threading.Timer(AWAY_SECONDS, own_service.restart))
        returns[-1].start()

    yield away
    for timer in returns:
        timer.join()


def reports_while_away(handle: TrialHandle, go_away: Callable[[], None]) -> float:
    go_away()
    handle.report(1, loss=0.75)
    return 0.5


def ends_while_away(_: TrialHandle, go_away: Callable[[], None]) -> float:
    go_away()
    return 0.5


def is_infeasible_while_away(_: TrialHandle, go_away: Callable[[], None]) -> float:
    go_away()
    raise Infeasible("too large")


@pytest.mark.parametrize(
    ("objective", "state"),
    [
        (reports_while_away, "COMPLETED"),
        (ends_while_away, "COMPLETED"),
        (is_infeasible_while_away, "INFEASIBLE"),
    ],
)
def test_what_came_of_a_trial_is_told_when_the_service_is_back(
    go_away, start_evaluating, objective, state: str
) -> None:
    trial = evaluate(start_evaluating(60), lambda handle: objective(handle, go_away), ["loss"])
    assert trial is not None
    assert (trial.state, trial.raw["attempts"]) == (state, 1)


@pytest.mark.parametrize("objective", [reports_while_away, ends_while_away])
def test_a_service_away_for_longer_than_the_lease_is_no_failure(
    own_service: Service, client: Client, go_away, start_evaluating, objective
) -> None:
    handle = start_evaluating(1.0)
    with pytest.raises(Unreachable):
        evaluate(handle, lambda found: objective(found, go_away), ["loss"])
    with Client(own_service.url, own_service.key) as patient:
        until(lambda: patient.trial(handle.id).state != "RUNNING")
    found = client.trial(handle.id)
    assert (found.state, [a["exit"] for a in found.raw["attempts_log"]]) == ("QUEUED", ["lease_expired"])


@pytest.mark.slow
def test_the_time_limit_of_a_trial_ends_with_its_objective(
    own_service: Service, client: Client, make_spec, tmp_path: Path
) -> None:
    study = client.create_study(make_spec()).id
    command = [sys.executable, "-m", "workers.objective", "--study", study, "--timeout", "3"]
    command += ["--objective", "worker_objectives:waits_for_the_gate", "--max-trials", "1"]
    told = {"BO_URL": own_service.url, "BO_API_KEY": own_service.key, "BO_TEST_GATE": str(tmp_path)}
    found = {"PYTHONPATH": os.pathsep.join([str(OBJECTIVES), os.environ.get("PYTHONPATH", "")])}
    worker = subprocess.Popen(command, env=os.environ | told | found)
    until(lambda: list(tmp_path.glob("trial-1-*")))
    own_service.kill()
    (tmp_path / "open").touch()
    time.sleep(5)
    own_service.restart()
    assert worker.wait(60) == 0
    (trial,) = client.trials(study)
    assert (trial.state, trial.raw["attempts"]) == ("COMPLETED", 1)
