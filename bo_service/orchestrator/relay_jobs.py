"""Between steps 5 and 6, with a broker: a message for every due job. The row stays the truth, the message a wake-up."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final

from bo_service.domain.job import ALIVE, Job, Queue
from bo_service.orchestrator.ports import UnitOfWork

Send = Callable[[Job, Queue], None]
"""Sends one message to a queue; raises whatever the broker's client raises."""

BATCH: Final = 100


def relay_jobs(*, send: Send, resend_after: timedelta, uow: UnitOfWork) -> int:
    """Send a message for every due job that has none, or an old one; returns how many.

    Any number of relays may run: no two get the same job. A message sent twice is harmless, one that could not
    be sent is sent in a later round. Raises: what `send` raises, after the marks are taken back.
    """
    with uow() as store:
        now = store.now()
        jobs = store.jobs.to_send(now=now, resend_after=resend_after, limit=BATCH)
        if not jobs:
            return 0
        served = {q for w in store.jobs.processes(since=now - ALIVE) for q in w.queues}
        store.commit()
    n_sent = 0
    try:
        for job in jobs:
            send(job, route(job.queue, served))
            n_sent += 1
    finally:
        if n_sent < len(jobs):
            with uow() as store:
                store.jobs.unsend([job.id for job in jobs[n_sent:]])
                store.commit()
    return n_sent


def route(wanted: Queue, served: set[Queue]) -> Queue:
    """The queue a surrogate wants, or `cpu` where nobody serves that and a CPU worker is alive: slower, but done."""
    return Queue.CPU if wanted not in served and Queue.CPU in served else wanted
