"""A fit that takes too much memory or time, and a process that did enough: another process goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bo_service.client import Client
from tests.conftest import Service, StartService
from tests.sleeping import installed, sleeping_study, sleeping_surrogate
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

GREEDY = """
import time
from dataclasses import replace
from surrogates.gp.plugin import plugin as gp

def build(request):
    held = []
    while True:
        held.append(bytearray(50_000_000))
        time.sleep(0.05)

plugin = replace(gp, name="greedy", build=build)
"""


def study_of(client: Client, name: str, make_spec: Any) -> str:
    rows = [{"parameters": {"x": 0.1 * i, "k": 1 + i}, "metrics": {"loss": i}} for i in range(4)]
    study = client.create_study(make_spec(surrogate={"name": name}, initial={"size": 2})).id
    client.import_trials(study, rows)
    return study


def crashes_of(client: Client, study: str) -> list[str]:
    return [e.data["error"] for e in client.events(study, follow=False) if e.kind == "job_crashed"]


def test_a_fit_that_takes_all_memory_is_ended_and_the_study_goes_on_labelled(
    start_service: StartService, make_spec, tmp_path: Path
) -> None:
    service = start_service(
        **installed(tmp_path, "greedy", GREEDY), BO_COMPUTE_MAX_MEGABYTES="600", BO_REAPER_SECONDS="0.5"
    )
    with Client(service.url, service.key) as client:
        study = study_of(client, "greedy", make_spec)
        trial = until(lambda: next(iter(client.claim(study, "w", wait_seconds=5).trials), None), seconds=120)
        assert "breaker" in trial.provenance["fallback_reason"]
        errors = crashes_of(client, study)
        assert len(errors) >= 3
        assert all("more than 1.5 times BO_COMPUTE_MAX_MEGABYTES=600" in error for error in errors)


def test_a_fit_that_never_ends_is_ended(start_service: StartService, make_spec, tmp_path: Path) -> None:
    service = start_service(
        **sleeping_surrogate(tmp_path, seconds=600), BO_JOB_DEADLINE_SECONDS="2", BO_REAPER_SECONDS="0.5"
    )
    with Client(service.url, service.key) as client:
        study = sleeping_study(client, make_spec)
        (error, *_) = until(lambda: crashes_of(client, study), "a crash")
        assert "it took longer than 2 s" in error


def pid_of_compute(service: Service) -> str:
    with service.http() as http:
        processes = http.get("/v1/status").json()["processes"]
    return max((p["name"] for p in processes), default="")


def test_a_compute_process_that_did_its_share_is_replaced(start_service: StartService, make_spec) -> None:
    service = start_service(BO_COMPUTE_MAX_TASKS="2")
    seen = set()
    with Client(service.url, service.key) as client:
        for _ in range(6):
            study = client.create_study(make_spec()).id
            until(lambda study=study: client.claim(study, "w", wait_seconds=5).trials, "a suggestion")
            seen.add(until(lambda: pid_of_compute(service)))
    assert len(seen) >= 2
