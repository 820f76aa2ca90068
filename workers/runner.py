"""Runs one job under a lease: what a compute worker behind a broker does with a message."""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn

from bo_service.bootstrap import Services
from bo_service.domain.errors import Unavailable
from bo_service.domain.ids import JobId, new_lease_token
from bo_service.domain.job import UNAVAILABLE_PAUSE, Job
from bo_service.orchestrator.ports import UnitOfWork
from bo_service.orchestrator.reap import claim_job, crash_job, release_job, renew_job
from workers.house import guarded
from workers.memory import too_much
from workers.tasks import Desk

LOOK_SECONDS: Final = 1.0
"""Time between two looks at the memory of the process, and between two tries to renew a lease that failed."""

RENEWALS: Final = 5
"""So often a lease is renewed in the time it lasts."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Runner:
    """A compute process's hands; a message that comes twice, late or for nothing does nothing."""

    services: Services
    desk: Desk

    def run(self, job_id: str) -> bool:
        """Run the job; False where it is done, taken or resting."""
        settings, uow = self.services.settings, self.services.uow
        claim = partial(
            claim_job,
            new_lease_token(),
            lease_seconds=settings.job_lease_seconds,
            job_id=JobId(job_id),
            uow=uow,
        )
        # another message comes once the database is back
        job = guarded(claim, what="taking a job")
        if job is None:
            return False
        with self._lease_kept(job):
            try:
                self.desk.run(job)
            except SystemExit:
                # told to stop, and not to wait for the fit
                guarded(lambda: release_job(job, uow=uow), what=f"giving back job {job.id}")
                raise
            except Unavailable as error:
                # the database was away or busy, which is no fault of the model's
                logger.warning("job %s of study %s is given back: %s", job.id, job.study_id, error)
                guarded(
                    lambda: release_job(job, pause=UNAVAILABLE_PAUSE, uow=uow),
                    what=f"giving back job {job.id}",
                )
            except Exception:  # the worker boundary: whatever a model does, the worker lives
                logger.exception("job %s of study %s failed", job.id, job.study_id)
                crash_job(job, traceback.format_exc(limit=-6), uow=uow)
        return True

    @contextmanager
    def _lease_kept(self, job: Job) -> Iterator[None]:
        """Renew the lease from a thread while the job runs; end the process when the job takes too much memory."""
        done = threading.Event()
        settings = self.services.settings
        seconds = settings.job_lease_seconds

        def care() -> None:
            next_renewal = time.monotonic() + seconds / RENEWALS
            is_kept = True
            while not done.wait(min(LOOK_SECONDS, seconds / RENEWALS)):
                if reason := too_much(settings.compute_max_megabytes):
                    end_for(job, reason, uow=self.services.uow)
                if not is_kept or time.monotonic() < next_renewal:
                    continue
                kept = guarded(
                    lambda: renew_job(job, seconds=seconds, uow=self.services.uow),
                    what=f"renewing job {job.id}",
                )
                if kept is not None:
                    next_renewal = time.monotonic() + seconds / RENEWALS
                if kept is False:
                    logger.warning("job %s was given to another worker; its result will be void", job.id)
                    is_kept = False

        thread = threading.Thread(target=care, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def end_for(job: Job, reason: str, *, uow: UnitOfWork) -> NoReturn:
    """Count the job as crashed and end this process, which cannot be made to let go; another takes its place."""
    logger.error("job %s of study %s is ended: %s", job.id, job.study_id, reason)
    guarded(lambda: crash_job(job, reason, uow=uow), what=f"noting the end of job {job.id}")
    os._exit(1)
