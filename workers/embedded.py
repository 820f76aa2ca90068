"""The compute process of an embedded service: relay, reaper and executor without a broker."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from bo_service.bootstrap import Services, build_services
from bo_service.domain.errors import Unavailable
from bo_service.domain.ids import LeaseToken, new_lease_token
from bo_service.domain.job import UNAVAILABLE_PAUSE, Job, Queue, Role
from bo_service.orchestrator.reap import (
    claim_job,
    crash_job,
    release_job,
    renew_job,
    requeue_orphans,
)
from bo_service.settings import Settings
from bo_service.telemetry import start_logging, start_tracing
from workers.house import Housekeeper, guarded
from workers.memory import resident_megabytes, too_much
from workers.notifier import notifier_of
from workers.presence import Presence
from workers.runner import end_for
from workers.stopping import on_stop
from workers.tasks import Desk

TOKEN_PREFIX: Final = f"embedded:{socket.gethostname()[:20]}:"
"""Tokens of this machine's executors; the process id follows, so that a successor knows whom it succeeds."""

IDLE_SECONDS: Final = 1.0
"""How long an idle executor sleeps between two looks; a wake-up ends the sleep at once."""

LAST_SECONDS: Final = 0.5
"""For the transaction under way when this process is told to end."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Executor:
    """Runs jobs one after the other on the main thread, while a second thread keeps house.

    The second thread renews the running job's lease, reaps, rescues claims behind an overdue fit, and ends
    the process when a job passes its deadline: the parent starts a new one.
    """

    services: Services
    desk: Desk
    awake: threading.Event = field(default_factory=threading.Event)
    stopping: threading.Event = field(default_factory=threading.Event)
    _running: tuple[Job, float] | None = None

    def run(self) -> None:
        """Work until told to stop, or until it is time for another process: the parent starts one."""
        n_orphans = requeue_orphans(TOKEN_PREFIX, is_dead=is_dead, uow=self.services.uow)
        if n_orphans:
            logger.warning("requeued %d jobs of a process that died", n_orphans)
        threading.Thread(target=self._keep_house, name="house", daemon=True).start()
        self.desk.prepare()
        settings, n_run = self.services.settings, 0
        while not self.stopping.is_set():
            self.awake.clear()
            if not self._run_one():
                self.awake.wait(IDLE_SECONDS)
                continue
            n_run += 1
            if n_run >= settings.compute_max_tasks or resident_megabytes() > settings.compute_max_megabytes:
                logger.info(
                    "%d jobs done, %.0f MB held: another process goes on", n_run, resident_megabytes()
                )
                return

    def _run_one(self) -> bool:
        """Run the oldest job; False where there is none."""
        token = LeaseToken(f"{TOKEN_PREFIX}{os.getpid()}:{new_lease_token()}")
        job = claim_job(token, lease_seconds=self.services.settings.job_lease_seconds, uow=self.services.uow)
        if job is None:
            return False
        self._running = (job, time.monotonic())
        if self.stopping.is_set():
            # whoever gave back what was running may have looked before this job was taken
            self.give_back()
            return False
        try:
            self.desk.run(job)
        except Unavailable as error:
            # the database was away or busy, which is no fault of the model's
            logger.warning("job %s of study %s is given back: %s", job.id, job.study_id, error)
            guarded(
                lambda: release_job(job, pause=UNAVAILABLE_PAUSE, uow=self.services.uow),
                what=f"giving back job {job.id}",
            )
        except Exception:  # the worker boundary: whatever a model does, the executor lives
            logger.exception("job %s of study %s failed", job.id, job.study_id)
            crash_job(job, traceback.format_exc(limit=-6), uow=self.services.uow)
        finally:
            self._running = None
        say_changed(job)
        return True

    def give_back(self) -> None:
        """Return the job under way to the queue, for whoever comes next."""
        running = self._running
        if running is not None:
            release_job(running[0], uow=self.services.uow)

    def _keep_house(self) -> None:
        settings = self.services.settings
        keeper = Housekeeper(self.services.uow)
        while not self.stopping.wait(settings.reaper_seconds):
            guarded(partial(self._care_for_running, settings), what="care for the running job")
            if keeper.round():
                self.awake.set()

    def _care_for_running(self, settings: Settings) -> None:
        running = self._running
        if running is None:
            return
        job, started = running
        seconds = time.monotonic() - started
        if seconds > settings.job_deadline_seconds:
            end_for(job, f"it took longer than {settings.job_deadline_seconds:g} s", uow=self.services.uow)
        if reason := too_much(settings.compute_max_megabytes):
            end_for(job, reason, uow=self.services.uow)
        renew_job(job, seconds=settings.job_lease_seconds, uow=self.services.uow)
        if seconds > settings.fit_deadline_seconds and self.desk.rescue(job):
            say_changed(job)


def is_dead(token: LeaseToken) -> bool:
    """Whether the process of this machine that took the token is gone."""
    pid = token.removeprefix(TOKEN_PREFIX).partition(":")[0]
    if not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(pid) == os.getpid()


def say_changed(job: Job) -> None:
    """Tell the parent that claims for this study may look again."""
    sys.stdout.write(f"changed {job.study_id}\n")
    sys.stdout.flush()


def listen(executor: Executor, end: Callable[[], None]) -> None:
    """Wake the executor on every line of input; end with the input, so that no child outlives its parent."""
    for _ in sys.stdin:
        executor.awake.set()
    end()


def end(executor: Executor, presence: Presence) -> None:
    """Give back the job under way, say goodbye and end; a fit is not waited for."""
    executor.stopping.set()
    executor.awake.set()
    guarded(executor.give_back, what="giving back the running job")
    presence.stop()
    time.sleep(LAST_SECONDS)
    os._exit(0)


def main() -> None:
    """Entry point of the child process."""
    settings = Settings()
    start_logging("compute", level=settings.log_level, form=settings.log_format)
    if settings.tracing:
        start_tracing("compute")
    services = build_services(settings)
    executor = Executor(services=services, desk=Desk(uow=services.uow, device=settings.device))
    presence = Presence(
        name=f"embedded-{os.getpid()}@{socket.gethostname()}",
        role=Role.COMPUTE,
        queues=(Queue.CPU, Queue.GPU, Queue.LLM),
        device=settings.device,
        uow=services.uow,
        is_embedded=True,
    )
    presence.start()
    notifier_of(services).start()
    end_now = partial(end, executor, presence)
    # the parent ends this process by its input; a signal to the whole group, such as Ctrl-C, is one to the parent
    on_stop(end_now, signals=(signal.SIGTERM,))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=listen, args=(executor, end_now), name="listen", daemon=True).start()
    executor.run()
    presence.stop()


if __name__ == "__main__":
    main()
