"""kill -9 of the compute child and of the server: nothing is lost, nothing is stuck, no number is used twice."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from bo_service.client import BoServiceError, Client
from tests.conftest import StartService, _fresh_postgres
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def children_of(pid: int) -> list[int]:
    """Process ids whose parent this is."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(status.parent.name))
    return found


@pytest.fixture
def own_service(start_service):
    return start_service(BO_REAPER_SECONDS="0.5", BO_JOB_LEASE_SECONDS="5")


def gp_spec(make_spec, **changes):
    parameters = [{"type": "float", "name": f"x{i}", "low": 0, "high": 1} for i in range(4)]
    return make_spec(parameters=parameters, surrogate={"name": "gp"}, initial={"size": 4}, **changes)


def test_a_compute_child_killed_again_and_again_delays_and_loses_nothing(own_service, make_spec) -> None:
    with Client(own_service.url, own_service.key) as client:
        study = client.create_study(gp_spec(make_spec)).id
        stop = threading.Event()

        def kill_now_and_then() -> None:
            while not stop.wait(7.0):
                for child in children_of(own_service.process.pid):
                    os.kill(child, signal.SIGKILL)

        killer = threading.Thread(target=kill_now_and_then)
        killer.start()
        n_told = 0
        deadline = time.monotonic() + 150
        while n_told < 12 and time.monotonic() < deadline:
            for trial in client.claim(study, "w", wait_seconds=20).trials:
                client.complete(trial, {"loss": sum(trial.parameters.values())})
                n_told += 1
        stop.set()
        killer.join()
        found = client.study(study)
        trials = list(client.trials(study))
    assert n_told == 12
    assert found.counts["COMPLETED"] == 12
    assert [t.number for t in trials] == list(range(1, 13))
    # killed often enough, the study goes on without its model and says so
    made_by = {t.provenance["generator"].partition(":")[0] for t in trials}
    assert made_by <= {"initial", "gp", "space-filling"}
    assert len(made_by) > 1


def test_a_server_killed_while_it_is_told_results_keeps_what_it_acknowledged(own_service, make_spec) -> None:
    with Client(own_service.url, own_service.key) as client:
        study = client.create_study(make_spec(retry={"lease_seconds": 4})).id
    acknowledged: dict[str, float] = {}
    lock = threading.Lock()
    stop = threading.Event()

    def work(name: str) -> None:
        with Client(own_service.url, own_service.key, patience_seconds=60) as client:
            while not stop.is_set():
                try:
                    for trial in client.claim(study, name, wait_seconds=5).trials:
                        value = trial.parameters["x"]
                        client.complete(trial, {"loss": value})
                        with lock:
                            acknowledged[trial.id] = value
                except BoServiceError:
                    continue

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(3)
        own_service.kill()
        own_service.restart()
    time.sleep(2)
    stop.set()
    for thread in threads:
        thread.join()
    with Client(own_service.url, own_service.key) as client:
        until(lambda: not client.study(study).counts["RUNNING"], "the end of every trial")
        trials = list(client.trials(study))
        found = client.study(study)
    recorded = {t.id: t.metrics["loss"] for t in trials if t.state == "COMPLETED"}
    assert len(acknowledged) > 20
    assert {key: recorded[key] for key in acknowledged} == acknowledged
    numbers = [t.number for t in trials]
    assert numbers == sorted(set(numbers))
    assert found.counts["COMPLETED"] == len(recorded)
    assert found.best_value == min(recorded.values())


def test_the_compute_child_ends_with_its_parent(own_service) -> None:
    (child,) = children_of(own_service.process.pid)
    own_service.kill()
    until(lambda: is_gone(child), "the end of the child", seconds=20)
    own_service.restart()


@pytest.mark.postgres
def test_several_http_processes_end_with_their_parent_and_leave_the_port(
    start_service: StartService, postgres_url: str
) -> None:
    service = start_service(BO_DATABASE_URL=_fresh_postgres(postgres_url), TEST_API_PROCESSES="2")
    children = children_of(service.process.pid)
    assert len(children) >= 3, "two HTTP processes and the compute child"
    service.kill()
    until(lambda: all(is_gone(child) for child in children), "the end of the children", seconds=20)
    service.restart()


def is_gone(pid: int) -> bool:
    """Whether a process has ended, though nobody may have asked for its status yet."""
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]
    except FileNotFoundError:
        return True
