"""kill -9 at each commit point of claim, heartbeat, tell, relay and fit result."""

from __future__ import annotations

import os
import threading

import pytest

from bo_service.client import Client
from tests.conftest import _fresh_postgres
from tests.distributed.conftest import Fleet
from tests.faults.conftest import Load, assert_nothing_lost, settings_of

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300)]

MOMENTS = ("before", "after")
IN_THE_SERVICE = {
    "claim": "trials.add",
    "heartbeat": "trials.keep_lease",
    "tell": "trials.observe_final",
}
IN_COMPUTE = {"job claim": "jobs.claim", "fit result": "records.add_fit"}
PATIENT = {"BO_REAPER_SECONDS": "0.5", "BO_JOB_LEASE_SECONDS": "3"}


def spec(make_spec, n_trials: int):
    return make_spec(
        surrogate={"name": "sobol"}, retry={"lease_seconds": 3}, stopping={"max_trials": n_trials}
    )


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def patient(request: pytest.FixtureRequest) -> dict[str, str]:
    """The settings of a service on each kind of database."""
    if request.param == "sqlite":
        return PATIENT
    return {**PATIENT, "BO_DATABASE_URL": _fresh_postgres(request.getfixturevalue("postgres_url"))}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("act", IN_THE_SERVICE)
def test_the_service_killed_at_a_commit(
    start_service, patient: dict[str, str], make_spec, act: str, moment: str
) -> None:
    point = f"{moment}:{IN_THE_SERVICE[act]}"
    service = start_service(**patient)
    with Client(service.url, service.key) as client:
        study = client.create_study(spec(make_spec, 30)).id
    load = Load(service.url, service.key, study, 30)
    service.environment["BO_FAIL_POINTS"] = f"{point}=kill"
    service.kill()
    service.restart()
    with load.running():
        # it ends by itself, and somebody starts it again
        service.process.wait(60)
        assert service.process.returncode == -9
        service.restart()
    assert (service.home / "fail_points" / point).exists()
    assert_nothing_lost(settings_of(service), load)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("act", IN_COMPUTE)
def test_the_compute_child_killed_at_a_commit(
    start_service, patient: dict[str, str], make_spec, act: str, moment: str
) -> None:
    point = f"{moment}:{IN_COMPUTE[act]}"
    service = start_service(**patient, BO_FAIL_POINTS=f"{point}=kill")
    with Client(service.url, service.key) as client:
        study = client.create_study(spec(make_spec, 30)).id
    load = Load(service.url, service.key, study, 30)
    with load.running():
        pass
    assert (service.home / "fail_points" / point).exists()
    assert_nothing_lost(settings_of(service), load)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_request_sent_again_after_the_service_died_acts_once(
    start_service, patient: dict[str, str], make_spec, moment: str
) -> None:
    service = start_service(**patient, BO_FAIL_POINTS=f"{moment}:records.remember_reply=kill")

    def restart_once() -> None:
        service.process.wait(60)
        service.restart()

    supervisor = threading.Thread(target=restart_once)
    supervisor.start()
    with Client(service.url, service.key, patience_seconds=60) as client:
        made = client.create_study(spec(make_spec, 5))
        assert [study.id for study in client.studies()] == [made.id]
    supervisor.join()
    assert (service.home / "fail_points" / f"{moment}:records.remember_reply").exists()


@pytest.mark.postgres
@pytest.mark.parametrize("point", ["before:jobs.to_send", "after:jobs.to_send"])
def test_a_relay_killed_between_mark_and_message(fleet: Fleet, make_spec, point: str) -> None:
    api = fleet.api()
    fleet.compute()
    with Client(api.url, api.key) as client:
        study = client.create_study(spec(make_spec, 30)).id
    load = Load(api.url, api.key, study, 30)
    first = fleet.relay("first", BO_FAIL_POINTS=f"{point}=kill")
    with load.running():
        assert first.wait(60) == -9
        fleet.relay("second")
    assert_nothing_lost(fleet.settings, load)


SLOW_IMPORT = """
import sys, time

class Slow:
    def find_spec(self, name, path, target=None):
        if name == "bo_service.generation.ladder":
            time.sleep(6)

sys.meta_path.insert(0, Slow())
"""


@pytest.mark.postgres
def test_a_compute_worker_that_takes_long_to_start_again_is_let(fleet: Fleet, make_spec) -> None:
    (fleet.home / "sitecustomize.py").write_text(SLOW_IMPORT)
    fleet.environment |= PATIENT
    api = fleet.api()
    fleet.relay()
    paths = [str(fleet.home), *filter(None, [os.environ.get("PYTHONPATH")])]
    fleet.compute(BO_FAIL_POINTS="after:jobs.claim=kill", PYTHONPATH=os.pathsep.join(paths))
    with Client(api.url, api.key) as client:
        study = client.create_study(spec(make_spec, 5)).id
    load = Load(api.url, api.key, study, 5)
    with load.running():
        pass
    assert (fleet.home / "fail_points" / "after:jobs.claim").exists()
    assert_nothing_lost(fleet.settings, load)
    assert "Timed out waiting for UP message" not in fleet.log("compute")


@pytest.mark.postgres
@pytest.mark.parametrize("point", ["after:jobs.claim", "before:records.add_fit", "after:records.add_fit"])
def test_a_compute_worker_killed_at_a_commit(fleet: Fleet, make_spec, point: str) -> None:
    fleet.environment |= PATIENT
    api = fleet.api()
    fleet.relay()
    fleet.compute(BO_FAIL_POINTS=f"{point}=kill", BO_HOME=str(fleet.home))
    with Client(api.url, api.key) as client:
        study = client.create_study(spec(make_spec, 30)).id
    load = Load(api.url, api.key, study, 30)
    with load.running():
        pass
    assert (fleet.home / "fail_points" / point).exists()
    assert_nothing_lost(fleet.settings, load)


def test_the_whole_service_killed_again_and_again(start_service, patient: dict[str, str], make_spec) -> None:
    service = start_service(**patient)
    with Client(service.url, service.key) as client:
        study = client.create_study(spec(make_spec, 240)).id
    load = Load(service.url, service.key, study, 240)
    over = threading.Event()

    def kill_now_and_then() -> None:
        while not over.wait(2.0):
            service.kill()
            service.restart()

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        with load.running():
            pass
    finally:
        over.set()
        killer.join()
    assert_nothing_lost(settings_of(service), load)
