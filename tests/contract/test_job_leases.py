"""A dead worker's job comes back soon; the job of a living one stays with it, however slow its fit is."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

from bo_service.domain.errors import Unavailable
from bo_service.domain.ids import LeaseToken
from bo_service.domain.job import JobState
from bo_service.orchestrator.reap import claim_job
from bo_service.settings import Settings
from tests.steps import new_study
from workers import house
from workers.house import Housekeeper
from workers.runner import Runner


class SlowDesk:
    """Computes for some multiples of the lease, and never lets go of the interpreter for long."""

    def __init__(self, seconds: float, services) -> None:
        self.seconds, self.services = seconds, services
        self.n_reaped = 0

    def run(self, _job) -> None:
        end = time.monotonic() + self.seconds
        keeper = Housekeeper(self.services.uow)
        while time.monotonic() < end:
            for _ in range(20):
                sum(range(200_000))
            self.n_reaped += keeper.round()


def test_a_slow_fit_keeps_its_job_by_a_thread(services, project, make_spec) -> None:
    new_study(services, project, make_spec)
    settings = services.settings.model_copy(update={"job_lease_seconds": 2.0})
    quick = replace(services, settings=settings)
    desk = SlowDesk(5.0, quick)
    with services.uow() as store:
        (job,) = store.jobs.to_send(now=store.now(), resend_after=timedelta(seconds=1), limit=1)
    assert Runner(services=quick, desk=desk).run(job.id)
    assert desk.n_reaped == 0


def test_a_job_is_silent_for_a_quarter_of_a_minute_at_most() -> None:
    assert Settings().job_lease_seconds <= 15


def test_after_an_outage_of_the_database_workers_get_time_to_renew(
    services, project, make_spec, monkeypatch
) -> None:
    """Nobody could renew meanwhile: that is no worker's death."""
    new_study(services, project, make_spec)
    job = claim_job(LeaseToken("alive"), lease_seconds=0.01, uow=services.uow)
    assert job is not None
    time.sleep(0.05)
    monkeypatch.setattr(house, "AFTER_OUTAGE_SECONDS", 0.5)
    keeper = Housekeeper(services.uow)

    def away(**_: object) -> None:
        raise Unavailable("the database does not answer")

    with monkeypatch.context() as outage:
        outage.setattr(house, "expired", away)
        assert keeper.round() == 0
    assert keeper.round() == 0
    time.sleep(0.6)
    assert keeper.round() == 1
    with services.uow(read_only=True) as store:
        assert store.jobs.get(job.id, lock=False).state is JobState.QUEUED
