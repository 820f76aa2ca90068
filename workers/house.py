"""Housekeeping: what the reaper does, round after round, beside an embedded executor or in the relay's process."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

from bo_service.domain.errors import Contention, Unavailable
from bo_service.orchestrator.ports import UnitOfWork
from bo_service.orchestrator.reap import expired, reap_job, reap_trial, tidy
from bo_service.outages import BROKER, DATABASE, BrokerAway

TIDY_SECONDS: Final = 3600.0

AFTER_OUTAGE_SECONDS: Final = 5.0
"""Workers that could not renew their jobs while the database was away do so within this time."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Housekeeper:
    """One round at a time; what fails is logged and tried again in the next round, and keeps nothing else waiting."""

    uow: UnitOfWork
    _next_tidy: float = field(default_factory=lambda: time.monotonic() + TIDY_SECONDS)
    _away_until: float = -math.inf
    """When the database last did not answer, and the time workers get after that."""

    def round(self) -> int:
        """Reap, and tidy when it is time; returns how many trials and jobs went back to work."""
        found = guarded(partial(expired, uow=self.uow), what="looking for lost leases")
        if found is None:
            self._away_until = time.monotonic() + AFTER_OUTAGE_SECONDS
        trials, jobs = found or ([], [])
        if time.monotonic() < self._away_until:
            # a fit goes on while the database is away, and is not to be run twice for that
            jobs = []
        acts: Iterable[tuple[str, Callable[[], bool]]] = [
            *((f"trial {trial_id}", partial(reap_trial, trial_id, uow=self.uow)) for trial_id in trials),
            *((f"job {job.id}", partial(reap_job, job, uow=self.uow)) for job in jobs),
        ]
        n_reaped = sum(bool(guarded(act, what=f"reaping {what}")) for what, act in acts)
        if time.monotonic() > self._next_tidy:
            guarded(partial(tidy, uow=self.uow), what="tidying up")
            self._next_tidy = time.monotonic() + TIDY_SECONDS
        return n_reaped


def guarded(act: Callable[[], T], *, what: str) -> T | None:
    """Do it; None where it fails, and a line in the log unless a database or broker that is away had its line."""
    try:
        found = act()
    except Contention as error:
        logger.warning("%s failed: %s", what, error)
    except Unavailable as error:
        DATABASE.note(what, _reason(error))
    except BrokerAway as error:
        BROKER.note(what, str(error))
    except Exception:  # the worker boundary: a process that keeps house outlives any single failure
        logger.exception("%s failed", what)
    else:
        DATABASE.over(what)
        return found
    return None


def _reason(error: Unavailable) -> str:
    """What the database's driver said, where it said something."""
    cause = " ".join(str(getattr(error.__cause__, "orig", None) or "").split())
    return f"{error.detail}: {cause[:200]}" if cause else error.detail
