"""A load that notes what was acknowledged, and what must be true when the faults are over."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from bo_service.bootstrap import broken_invariants, build_services
from bo_service.client import Client, LeaseLost, TrialClosed
from bo_service.settings import Settings
from tests.conftest import Service
from tests.distributed.conftest import fleet, redis_server
from tests.waiting import until

__all__ = ["fleet", "redis_server"]

PATIENCE_SECONDS = 180
CLEARED_SECONDS = 120
"""Leases end, jobs that crashed rest and run."""


@dataclass
class Load:
    """Workers that evaluate one study's trials, and the values the service said it keeps."""

    url: str
    key: str
    study: str
    n_trials: int
    acknowledged: dict[str, float] = field(default_factory=dict)
    errors: list[BaseException] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def is_done(self) -> bool:
        return len(self.acknowledged) >= self.n_trials or bool(self.errors)

    def work(self, worker: str) -> None:
        try:
            with Client(self.url, self.key, patience_seconds=PATIENCE_SECONDS) as client:
                while not self.is_done():
                    for trial in client.claim(self.study, worker, wait_seconds=2).trials:
                        value = trial.parameters["x"]
                        try:
                            client.heartbeat(trial)
                            client.complete(trial, {"loss": value})
                        except (LeaseLost, TrialClosed):
                            # the fault took longer than the lease: somebody else has the trial
                            continue
                        with self._lock:
                            self.acknowledged[trial.id] = value
        except BaseException as error:
            self.errors.append(error)
            raise

    @contextmanager
    def running(self, n_workers: int = 3) -> Iterator[None]:
        """The workers run inside, and are waited for at the end."""
        threads = [threading.Thread(target=self.work, args=(f"w{i}",)) for i in range(n_workers)]
        for thread in threads:
            thread.start()
        yield
        for thread in threads:
            thread.join(200)
        assert self.errors == []
        assert not any(thread.is_alive() for thread in threads)

    def wait(self, n: int) -> None:
        """Until so many results are acknowledged."""
        until(lambda: len(self.acknowledged) >= n or bool(self.errors), f"{n} results", seconds=120)


NOTHING_OPEN = timedelta(days=-1)
"""No trial may be held and no job wait or run: the workers are gone."""


def assert_nothing_lost(settings: Settings, load: Load) -> None:
    """Every acknowledged result is there, once and with its value; nothing is held, and no rule is broken.

    What was under way when a process died takes a moment to be cleared up: leases end and are reaped.
    """
    services = build_services(settings)
    deadline = time.monotonic() + CLEARED_SECONDS
    while broken := broken_invariants(services, grace=NOTHING_OPEN):
        assert time.monotonic() < deadline, broken
        time.sleep(0.2)
    with services.uow(read_only=True) as store:
        for trial_id, value in load.acknowledged.items():
            trial = store.trials.get(trial_id)
            assert trial.state.value == "COMPLETED"
            assert trial.measurements["loss"].value == value
    services.close()


def settings_of(service: Service) -> Settings:
    return Settings(home=service.home, database_url=service.environment.get("BO_DATABASE_URL", ""))
