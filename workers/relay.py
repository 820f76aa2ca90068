"""`bo relay`: sends the messages and keeps house for a service with a broker; any number of them may run."""

from __future__ import annotations

import logging
import os
import socket
import threading
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Final

from bo_service.bootstrap import Services, open_services, shown_url
from bo_service.domain.job import Role
from bo_service.orchestrator.ports import UnitOfWork
from bo_service.orchestrator.relay_jobs import BATCH, Send, relay_jobs
from bo_service.settings import Settings
from bo_service.telemetry import start_logging, start_tracing
from workers.house import Housekeeper, guarded
from workers.notifier import notifier_of
from workers.presence import Presence
from workers.pusher import Pusher
from workers.stopping import end_within, on_stop
from workers.tasks import Desk

POLL_SECONDS: Final = 1.0
"""Without a word from the database the relay looks this often."""

STOP_SECONDS: Final = 4.0
"""A relay told to stop ends after so long, whatever it is at."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Relay:
    """Sends on every wake-up; a second thread reaps and rescues, whatever the broker does."""

    services: Services
    send: Send
    pusher: Pusher
    awake: threading.Event = field(default_factory=threading.Event)
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Work until told to stop."""
        settings = self.services.settings
        threading.Thread(target=self._keep_house, name="house", daemon=True).start()
        while not self.stopping.is_set():
            self.awake.clear()
            n_sent = guarded(self._relay, what="sending jobs") or 0
            self.pusher.round(self.services)
            if n_sent < BATCH:
                self.awake.wait(min(POLL_SECONDS, settings.reaper_seconds))

    def _keep_house(self) -> None:
        settings = self.services.settings
        keeper, desk = Housekeeper(self.services.uow), Desk(uow=self.services.uow)
        # a rescue holds its study: it should not import anything then
        desk.prepare()
        while not self.stopping.is_set():
            keeper.round()
            rescue_overdue(desk, seconds=settings.fit_deadline_seconds, uow=self.services.uow)
            self.stopping.wait(settings.reaper_seconds)

    def stop(self) -> None:
        """End after the round under way, or in the midst of it where a broker or database does not answer.

        A message that was not sent, or not marked as sent, is sent by another relay or the next one.
        """
        self.stopping.set()
        self.awake.set()
        end_within(STOP_SECONDS)

    def _relay(self) -> int:
        after = timedelta(seconds=self.services.settings.job_resend_seconds)
        return relay_jobs(send=self.send, resend_after=after, uow=self.services.uow)


def rescue_overdue(desk: Desk, *, seconds: float, uow: UnitOfWork) -> int:
    """Fallback suggestions for the claims behind every fit that takes longer than this; returns how many."""

    def overdue() -> int:
        with uow(read_only=True) as store:
            jobs = store.jobs.running_since(before=store.now() - timedelta(seconds=seconds))
        return sum(
            guarded(partial(desk.rescue, job), what=f"rescue behind job {job.id}") or 0 for job in jobs
        )

    return guarded(overdue, what="looking for overdue fits") or 0


def main() -> None:
    """Entry point of `bo relay`."""
    from workers.celery_app import (  # noqa: PLC0415  reads the settings when imported
        broker_trouble,
        make_sender,
        send,
        send_push,
    )

    settings = Settings()
    sender = make_sender(settings)
    start_logging("relay", level=settings.log_level, form=settings.log_format)
    if settings.tracing:
        start_tracing("relay")
    awake = threading.Event()
    pusher = Pusher(send=partial(send_push, through=sender), awake=awake)
    services = open_services(settings, on_jobs=awake.set, on_study=pusher.heard, on_gap=pusher.missed)
    relay = Relay(services=services, send=partial(send, through=sender), pusher=pusher, awake=awake)
    on_stop(relay.stop)
    presence = Presence(
        name=f"relay-{os.getpid()}@{socket.gethostname()}",
        role=Role.RELAY,
        queues=(),
        device="",
        uow=services.uow,
        trouble=partial(broker_trouble, sender),
    )
    presence.start()
    notifier = notifier_of(services)
    notifier.start()
    logger.info("relaying the jobs of %s", shown_url(settings.resolved_database_url()))
    relay.run()
    notifier.stop()
    presence.stop()
    services.close()


if __name__ == "__main__":
    main()
