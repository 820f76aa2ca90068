"""Told to stop, a service answers everybody, keeps what it acknowledged, and gives back what it was at."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bo_service.bootstrap import broken_invariants, build_services
from bo_service.client import Client
from bo_service.domain.ids import JobId
from bo_service.domain.job import Job, JobState
from bo_service.settings import Settings
from bo_service.storage.jobs import JOBS
from tests.conftest import Service, wait_until_ready
from tests.sleeping import sleeping_study, sleeping_surrogate
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STOP_SECONDS = 10
N_CLIENTS = 8
N_AT_WORK = 3


@dataclass
class Request:
    """One request without retries: when it was sent, and what came of it."""

    sent_at: float
    status: int | None = None
    answer: Any = None
    error: httpx2.TransportError | None = None
    headers: Any = None


@dataclass
class Worker:
    """A worker that claims, works and tells until the service is gone; it retries nothing, and notes everything."""

    service: Service
    study: str
    name: str
    claims: list[Request] = field(default_factory=list)
    held: dict[str, Any] = field(default_factory=dict)
    acknowledged: dict[str, float] = field(default_factory=dict)
    unanswered: list[tuple[str, Any]] = field(default_factory=list)

    def send(self, http: httpx2.Client, path: str, body: Any) -> Request:
        request = Request(time.monotonic())
        try:
            answer = http.post(path, json=body)
        except httpx2.TransportError as error:
            request.error = error
            self.unanswered.append((path, body))
        else:
            request.status, request.answer, request.headers = (
                answer.status_code,
                answer.json(),
                answer.headers,
            )
        return request

    def work(self) -> None:
        with self.service.http() as http:
            while not self.unanswered:
                body = {"worker": self.name, "wait_seconds": 20}
                self.claims.append(self.send(http, f"/v1/studies/{self.study}/trials", body))
                for trial in (self.claims[-1].answer or {}).get("trials", ()):
                    self.held[trial["id"]] = trial
                    time.sleep(random.uniform(0, 0.05))
                    self.tell(http, trial)

    def tell(self, http: httpx2.Client, trial: Any) -> Request:
        value = trial["parameters"]["x"]
        body = {"lease": trial["lease"], "metrics": {"loss": value}}
        told = self.send(http, f"/v1/trials/{trial['id']}/complete", body)
        if told.status == 200:
            self.acknowledged[trial["id"]] = value
            del self.held[trial["id"]]
        return told


def follow(service: Service, study: str, seen: list[str]) -> None:
    """Read events to the end of the stream, which must come in order: a broken one raises."""
    with service.http() as http, http.stream("GET", f"/v1/studies/{study}/events") as answer:
        seen.extend(line for line in answer.iter_lines() if line.startswith("id: "))
    seen.append("end")


def settings_of(service: Service) -> Settings:
    return Settings(home=service.home, database_url=service.environment.get("BO_DATABASE_URL", ""))


def told_to_stop(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> float:
    """Send the signal and wait for the end in good order; returns the seconds it took."""
    started = time.monotonic()
    process.send_signal(number)
    assert process.wait(STOP_SECONDS) == 0
    return time.monotonic() - started


def stop_under_load(service: Service, make_spec) -> None:
    """Eight workers of which most wait in a claim, and a reader of events; then SIGTERM."""
    with Client(service.url, service.key) as client:
        study = client.create_study(make_spec(parallelism=N_AT_WORK)).id
    workers = [Worker(service, study, f"w{i}") for i in range(N_CLIENTS)]
    seen: list[str] = []
    threads = [threading.Thread(target=worker.work) for worker in workers]
    threads.append(threading.Thread(target=follow, args=(service, study, seen)))
    for thread in threads:
        thread.start()
    until(lambda: sum(len(worker.acknowledged) for worker in workers) >= 30, "thirty results", seconds=60)
    told_at = time.monotonic()
    told_to_stop(service.process)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert seen[-1] == "end", "the stream of events broke"
    waiting = [c for worker in workers for c in worker.claims if c.sent_at < told_at and c.status == 202]
    assert waiting, "nobody waited"
    assert all(claim.headers["retry-after"] == "1" for claim in waiting)
    broken = [c for worker in workers for c in worker.claims if c.error and c.sent_at < told_at - 0.5]
    assert broken == [], "claims that waited got no answer"
    _nothing_lost(service, study, workers)


def _nothing_lost(service: Service, study: str, workers: list[Worker]) -> None:
    holders = {worker.name for worker in workers if worker.held or worker.unanswered}
    services = build_services(settings_of(service))
    with services.uow(read_only=True) as store:
        for worker in workers:
            for trial_id, value in worker.acknowledged.items():
                trial = store.trials.get(trial_id)
                assert (trial.state.value, trial.measurements["loss"].value) == ("COMPLETED", value)
        running = [trial for worker in workers for trial in store.trials.running_of(study, worker.name)]
        assert {trial.worker for trial in running} <= holders
    assert broken_invariants(services) == []
    services.close()
    service.restart()
    with service.http() as http:
        for worker in workers:
            # whoever got no answer asks again, with the same words
            for path, body in worker.unanswered:
                again = http.post(path, json=body | ({"wait_seconds": 0} if "wait_seconds" in body else {}))
                assert again.status_code in (200, 202), again.text
                for trial in again.json().get("trials", ()):
                    worker.held[trial["id"]] = trial
                if path.endswith("/complete"):
                    worker.held.pop(path.split("/")[-2], None)
            for trial in list(worker.held.values()):
                assert worker.tell(http, trial).status == 200


@pytest.fixture
def own_service(start_service) -> Service:
    return start_service()


def test_a_service_told_to_stop_under_load_breaks_nobody_off(own_service: Service, make_spec) -> None:
    stop_under_load(own_service, make_spec)


def test_claims_that_wait_are_answered_at_once(own_service: Service, make_spec) -> None:
    with Client(own_service.url, own_service.key) as client:
        study = client.create_study(make_spec()).id
        client.pause(study)
    workers = [Worker(own_service, study, f"w{i}") for i in range(N_CLIENTS)]
    threads = [threading.Thread(target=worker.work) for worker in workers]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    assert told_to_stop(own_service.process) < STOP_SECONDS
    for thread in threads:
        thread.join(10)
    for worker in workers:
        assert worker.claims[0].status == 202
        assert worker.claims[0].answer["reason"] == "paused"


def jobs_of(settings: Settings, study: str) -> list[Job]:
    """Every job of a study, oldest first."""
    services = build_services(settings)
    with services.transactions(read_only=True) as (connection, _):
        ids = [row.id for row in connection.execute(JOBS.select().where(JOBS.c.study_id == study))]
    with services.uow(read_only=True) as store:
        found = [store.jobs.get(JobId(job_id), lock=False) for job_id in sorted(ids)]
    services.close()
    return found


def running_job(settings: Settings, study: str, mark: Path) -> Job:
    """The job under way, once its fit has begun."""
    until(mark.exists, "the start of a fit", seconds=90)
    (found,) = [job for job in jobs_of(settings, study) if job.state is JobState.RUNNING]
    return found


def given_back(settings: Settings, job: Job) -> Job:
    """The job as it is now: waiting, uncounted."""
    (now,) = [found for found in jobs_of(settings, job.study_id) if found.id == job.id]
    assert (now.state, now.n_crashes, now.token) == (JobState.QUEUED, 0, None)
    return now


@pytest.fixture
def sleeping_service(start_service, tmp_path: Path) -> Service:
    """A service with a surrogate whose fits never end."""
    return start_service(**sleeping_surrogate(tmp_path, seconds=600))


def test_a_fit_under_way_is_given_back_uncounted(
    sleeping_service: Service, make_spec, tmp_path: Path
) -> None:
    service = sleeping_service
    with Client(service.url, service.key) as client:
        study = sleeping_study(client, make_spec)
    job = running_job(settings_of(service), study, tmp_path / "fitting")
    told_to_stop(service.process)
    given_back(settings_of(service), job)
    services = build_services(settings_of(service))
    with services.uow(read_only=True) as store:
        assert store.jobs.processes(since=job.created_at) == []
    services.close()
    service.environment["TEST_FIT_SECONDS"] = "0"
    service.restart()
    with Client(service.url, service.key) as client:
        (trial,) = client.claim(study, "w", wait_seconds=30).trials
    assert trial.raw["provenance"]["generator"].startswith("sleeping")


@pytest.fixture
def in_a_terminal(sleeping_service: Service) -> Iterator[Service]:
    """The service as the foreground group of a terminal, where Ctrl-C reaches every process of it."""
    service = sleeping_service
    service.kill()
    with (service.home / "service.log").open("ab") as log:
        service.process = subprocess.Popen(
            [sys.executable, "-m", "bo_service", "up", "--port", str(service.port)],
            env=service.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    wait_until_ready(service.url, service.process)
    yield service
    service.process.kill()
    service.process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_to_the_whole_group_gives_the_fit_back(
    in_a_terminal: Service, make_spec, tmp_path: Path, number: signal.Signals
) -> None:
    with Client(in_a_terminal.url, in_a_terminal.key) as client:
        study = sleeping_study(client, make_spec)
    job = running_job(settings_of(in_a_terminal), study, tmp_path / "fitting")
    os.killpg(in_a_terminal.process.pid, number)
    assert in_a_terminal.process.wait(STOP_SECONDS) == 0
    given_back(settings_of(in_a_terminal), job)
    assert "Traceback" not in (in_a_terminal.home / "service.log").read_text()
