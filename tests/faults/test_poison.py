"""A model that ends the process that fits it: the breaker opens, and the study goes on without the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from bo_service.client import Client
from tests.conftest import StartService
from tests.faults.conftest import Load, assert_nothing_lost, settings_of
from tests.sleeping import installed

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300)]

MODULE = """
import os
from surrogates.gp.plugin import plugin as gp
from dataclasses import replace

def build(request):
    with open(os.environ["TEST_FIT_MARK"], "a") as mark:
        mark.write("x")
    os._exit(1)

plugin = replace(gp, name="deadly", build=build)
"""


def test_a_model_that_kills_its_process_is_bypassed_after_three_crashes(
    start_service: StartService, make_spec, tmp_path: Path
) -> None:
    service = start_service(**installed(tmp_path, "deadly", MODULE), BO_REAPER_SECONDS="0.5")
    spec = make_spec(surrogate={"name": "deadly"}, initial={"size": 2}, stopping={"max_trials": 8})
    with Client(service.url, service.key) as client:
        study = client.create_study(spec).id
        load = Load(service.url, service.key, study, 8)
        with load.running(n_workers=2):
            pass
        with service.http() as http:
            breaker = http.get(f"/v1/studies/{study}").json()["breaker"]
            healthy = http.post("/v1/studies", json=make_spec()).json()["id"]
        trials = list(client.trials(study))
        events = [event for event in client.events(study, follow=False) if event.kind == "job_crashed"]
        # the compute process lives, and serves others
        (trial,) = client.claim(healthy, "w", wait_seconds=60).trials
        client.complete(trial, {"loss": 1.0})
    assert breaker["open"]
    assert breaker["reason"].startswith("breaker: 3 crashes of one job")
    assert (tmp_path / "fitting").read_text() == "xxx"
    assert [event.data["n_crashes"] for event in events] == [1, 2, 3]
    reasons = [trial.raw["provenance"]["fallback_reason"] for trial in trials]
    assert len(reasons) == 8
    assert reasons[:2] == [None, None]
    assert set(filter(None, reasons)) == {breaker["reason"]}
    assert reasons[-1] == breaker["reason"]
    assert_nothing_lost(settings_of(service), load)
