"""Told to stop, each process of a fleet ends in good order, and what it was at goes on elsewhere."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bo_service.client import Client
from bo_service.domain.job import JobState
from tests.distributed.conftest import Fleet, free_port
from tests.sleeping import sleeping_study, sleeping_surrogate
from tests.slow.test_told_to_stop import (
    STOP_SECONDS,
    Worker,
    follow,
    given_back,
    jobs_of,
    running_job,
    stop_under_load,
    told_to_stop,
)
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.timeout(300)]


def test_several_api_processes_told_to_stop_under_load_break_nobody_off(fleet: Fleet, make_spec) -> None:
    fleet.environment |= {"TEST_API_PROCESSES": "2", "BO_COMPUTE": "embedded"}
    stop_under_load(fleet.api(), make_spec)


def test_one_of_two_services_told_to_stop_leaves_the_work_to_the_other(fleet: Fleet, make_spec) -> None:
    """A rolling restart: clients that retry notice nothing."""
    first = fleet.api()
    port = free_port()
    fleet.start("second", "up", "--port", str(port))
    fleet.relay()
    fleet.compute()
    url = f"http://127.0.0.1:{port}"
    with Client(url, first.key) as client:
        study = client.create_study(make_spec()).id
        client.pause(study)
        waiting = [Worker(first, study, f"w{i}") for i in range(4)]
        threads = [threading.Thread(target=worker.work) for worker in waiting]
        seen: list[str] = []
        threads.append(threading.Thread(target=follow, args=(first, study, seen)))
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        told_to_stop(first.process)
        for thread in threads:
            thread.join(10)
        assert [worker.claims[0].status for worker in waiting] == [202] * 4
        assert seen[-1] == "end"
        client.resume(study)
        (trial,) = client.claim(study, "w0", wait_seconds=30).trials
        client.complete(trial, {"loss": 0.5})
        assert client.study(study).counts["COMPLETED"] == 1


def test_a_relay_ends_at_once(fleet: Fleet) -> None:
    fleet.api()
    relay = fleet.relay()
    until(lambda: "relaying" in fleet.log("relay"), "the relay")
    told_to_stop(relay)
    assert "Traceback" not in fleet.log("relay")


@pytest.fixture
def silent_broker() -> Iterator[str]:
    """A broker that takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}/0"


@pytest.mark.parametrize("broker", ["dead", "silent"])
def test_a_relay_ends_though_its_broker_does_not_answer(
    fleet: Fleet, make_spec, silent_broker: str, broker: str
) -> None:
    api = fleet.api()
    url = silent_broker if broker == "silent" else f"redis://127.0.0.1:{free_port()}/0"
    relay = fleet.relay(BO_BROKER_URL=url)
    until(lambda: "relaying" in fleet.log("relay"), "the relay")
    with Client(api.url, api.key) as client:
        study = client.create_study(make_spec()).id
    time.sleep(2)
    told_to_stop(relay)
    # another one sends what this one could not
    fleet.relay("next")
    fleet.compute()
    with Client(api.url, api.key) as client:
        until(lambda: bool(client.claim(study, "w", wait_seconds=5).trials), "a suggestion")


def test_a_relay_whose_broker_is_silent_keeps_house_all_the_same(
    fleet: Fleet, make_spec, silent_broker: str
) -> None:
    api = fleet.api()
    working = fleet.relay()
    worker = fleet.compute()
    with Client(api.url, api.key) as client:
        study = client.create_study(make_spec(retry={"lease_seconds": 4})).id
        until(lambda: bool(client.study(study).raw["prepared"]), "suggestions")
        told_to_stop(worker)
        told_to_stop(working)
        fleet.relay("deaf", BO_BROKER_URL=silent_broker)
        (trial,) = client.claim(study, "silent", wait_seconds=30).trials
        # the claim asks for more suggestions, so that the relay hangs at sending
        until(lambda: client.trial(trial.id).state == "QUEUED", "the end of the lease", seconds=30)


def test_a_compute_worker_told_to_stop_lets_its_fit_end(fleet: Fleet, make_spec, tmp_path: Path) -> None:
    fleet.environment |= sleeping_surrogate(tmp_path, seconds=5)
    api = fleet.api()
    fleet.relay()
    worker = fleet.compute()
    with Client(api.url, api.key) as client:
        study = sleeping_study(client, make_spec)
        job = running_job(fleet.settings, study, tmp_path / "fitting")
        worker.terminate()
        assert worker.wait(60) == 0
        (trial,) = client.claim(study, "w").trials
    assert trial.raw["provenance"]["generator"].startswith("sleeping")
    (now,) = [found for found in jobs_of(fleet.settings, study) if found.id == job.id]
    assert (now.state, now.n_crashes) in ((JobState.DONE, 0), (JobState.QUEUED, 0))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_compute_worker_told_twice_gives_its_fit_back_uncounted(
    fleet: Fleet, make_spec, tmp_path: Path, number: signal.Signals
) -> None:
    fleet.environment |= sleeping_surrogate(tmp_path, seconds=600)
    api = fleet.api()
    fleet.relay()
    worker = fleet.compute()
    with Client(api.url, api.key) as client:
        study = sleeping_study(client, make_spec)
        job = running_job(fleet.settings, study, tmp_path / "fitting")
        worker.send_signal(number)
        time.sleep(3)
        assert worker.poll() is None, "it does not wait for the fit"
        started = time.monotonic()
        worker.send_signal(number)
        worker.wait(STOP_SECONDS)
        print("ended after", time.monotonic() - started)
        given_back(fleet.settings, job)
        fleet.environment |= {"TEST_FIT_SECONDS": "0"}
        fleet.compute("next")
        until(lambda: bool(client.claim(study, "w", wait_seconds=5).trials), "a suggestion", seconds=90)
    (now,) = [found for found in jobs_of(fleet.settings, study) if found.id == job.id]
    assert now.n_crashes == 0


def test_of_two_workers_under_one_command_the_idle_one_does_not_hurry_the_other(
    fleet: Fleet, make_spec, tmp_path: Path
) -> None:
    fleet.environment |= sleeping_surrogate(tmp_path, seconds=8)
    api = fleet.api()
    fleet.relay()
    both = fleet.start("both", "compute", "--devices", "cpu,cpu", "--name", "both")
    with Client(api.url, api.key) as client:
        study = sleeping_study(client, make_spec)
        job = running_job(fleet.settings, study, tmp_path / "fitting")
        os.kill(both.pid, signal.SIGTERM)
        assert both.wait(60) == 0
        (now,) = [found for found in jobs_of(fleet.settings, study) if found.id == job.id]
        assert now.n_crashes == 0
        (trial,) = client.claim(study, "w").trials
    assert trial.raw["provenance"]["generator"].startswith("sleeping")
