"""The Celery application: messages that wake compute workers. What there is to do stands in the job rows."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final

from celery import Celery
from celery.signals import setup_logging, worker_process_init, worker_ready, worker_shutting_down
from kombu import Queue as BrokerQueue

import bo_service
from bo_service.bootstrap import Services, open_services
from bo_service.domain.job import ComputeWorker, Job, Queue
from bo_service.settings import Settings
from workers.house import guarded
from workers.runner import Runner
from workers.tasks import Desk

ADVANCE: Final = "bo.advance"
SAY_ALIVE_SECONDS: Final = 5.0


def make_app(settings: Settings) -> Celery:
    """The application for a broker. Late acks: a message outlives the process that took it."""
    app = Celery("bo_service", broker=settings.broker_url)
    deadline = settings.job_deadline_seconds
    app.conf.update(
        accept_content=["json"],
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"visibility_timeout": 2 * deadline, "socket_keepalive": True},
        task_acks_late=True,
        task_create_missing_queues=False,
        task_default_queue=Queue.CPU.value,
        task_ignore_result=True,
        task_queues=[BrokerQueue(queue.value) for queue in Queue],
        task_reject_on_worker_lost=False,  # the reaper brings the job back; the message has done its part
        task_serializer="json",
        task_time_limit=deadline,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_max_memory_per_child=settings.compute_max_megabytes * 1000,
        worker_max_tasks_per_child=settings.compute_max_tasks,
        worker_prefetch_multiplier=1,
    )
    return app


app = make_app(Settings())


@app.task(name=ADVANCE)  # type: ignore[untyped-decorator]  # celery carries no types
def advance(job_id: str) -> bool:
    """Step 6; see Runner.run."""
    return runner().run(job_id)


def send(job: Job, queue: Queue, *, settings: Settings, through: Celery = app) -> None:
    """A message for a job. It expires when the next one would be sent, so a long queue does not fill the broker."""
    through.send_task(
        ADVANCE,
        args=[job.id],
        queue=queue.value,
        expires=settings.job_resend_seconds,
        retry=False,
        ignore_result=True,
    )


_runners: dict[int, Runner] = {}


def runner() -> Runner:
    """The runner of this process: connections do not survive a fork, so each process opens its own."""
    pid = os.getpid()
    if pid not in _runners:
        _runners.clear()
        services = open_services(Settings())
        _runners[pid] = Runner(services=services, desk=Desk(uow=services.uow))
    return _runners[pid]


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _warm_up(**_: Any) -> None:
    def warm_up() -> None:
        runner().desk.warm_up()

    guarded(warm_up, what="warming up")


@setup_logging.connect  # type: ignore[untyped-decorator]
def _log(**_: Any) -> None:
    logging.basicConfig(
        level=Settings().log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s compute %(name)s: %(message)s",
    )


@dataclass(slots=True)
class Presence:
    """Says from the worker's main process that it is alive, and which queues it serves."""

    name: str
    queues: tuple[Queue, ...]
    settings: Settings
    _stopping: threading.Event = field(default_factory=threading.Event)
    _started_at: datetime | None = None

    def start(self) -> None:
        """Say so now and again, from a thread."""
        threading.Thread(target=self._run, name="presence", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def _run(self) -> None:
        services = open_services(self.settings)
        while True:
            guarded(partial(self._say, services), what="saying alive")
            if self._stopping.wait(SAY_ALIVE_SECONDS):
                guarded(partial(self._say_gone, services), what="saying goodbye")
                services.close()
                return

    def _say(self, services: Services) -> None:
        with services.uow() as store:
            now = store.now()
            self._started_at = self._started_at or now
            worker = ComputeWorker(
                name=self.name,
                queues=self.queues,
                device=self.settings.device,
                version=bo_service.__version__,
                started_at=self._started_at,
                seen_at=now,
            )
            store.jobs.saw_compute(worker)
            store.commit()

    def _say_gone(self, services: Services) -> None:
        with services.uow() as store:
            store.jobs.forget_compute(name=self.name)
            store.commit()


_presences: list[Presence] = []


@worker_ready.connect  # type: ignore[untyped-decorator]
def _say_hello(sender: Any = None, **_: Any) -> None:
    served = tuple(Queue(name) for name in sender.app.amqp.queues.consume_from)
    name = f"{sender.hostname or socket.gethostname()}"[:128]
    presence = Presence(name=name, queues=served, settings=Settings())
    presence.start()
    _presences.append(presence)


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _say_goodbye(**_: Any) -> None:
    for presence in _presences:
        presence.stop()
