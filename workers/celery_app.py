"""The Celery application: messages that wake compute workers. What there is to do stands in the job rows."""

from __future__ import annotations

import logging
import os
import signal
import socket
from functools import partial
from typing import Any, Final

from celery import Celery
from celery.signals import setup_logging, worker_process_init, worker_ready, worker_shutting_down
from kombu import Queue as BrokerQueue

from bo_service.bootstrap import Services, open_services
from bo_service.domain.job import Job, Queue, Role
from bo_service.domain.push import Push
from bo_service.domain.spec import PushPolicy
from bo_service.outages import BROKER, BrokerAway
from bo_service.settings import Settings
from bo_service.telemetry import start_logging, start_tracing
from workers.broker import PatientAMQP, broker_errors
from workers.house import guarded
from workers.presence import Presence
from workers.pushed import EVALUATE
from workers.runner import Runner
from workers.tasks import Desk

ADVANCE: Final = "bo.advance"
BROKER_SECONDS: Final = 3.0
FULL: Final = 10_000
"""Messages in a queue of the broker, a kilobyte each."""
START_SECONDS: Final = 120.0
"""A new child imports what fits models before it says that it is there; Celery would kill it after four seconds."""

logger = logging.getLogger(__name__)


def make_app(settings: Settings, *, is_current: bool = True) -> Celery:
    """The application for a broker. Late acks: a message outlives the process that took it."""
    app = Celery("bo_service", broker=settings.broker_url, amqp=PatientAMQP, set_as_current=is_current)
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
        worker_proc_alive_timeout=START_SECONDS,
    )
    return app


def make_sender(settings: Settings) -> Celery:
    """The application of who only sends: a broker that takes calls and does not answer costs seconds, not for ever."""
    # beside a worker it must not take the place of the worker's own
    sender = make_app(settings, is_current=False)
    timeouts = ("read_timeout", "write_timeout")
    if settings.broker_url.startswith("redis"):
        timeouts = ("socket_timeout", "socket_connect_timeout")
    sender.conf.broker_transport_options |= dict.fromkeys(timeouts, BROKER_SECONDS)
    sender.conf.broker_connection_timeout = BROKER_SECONDS
    return sender


app = make_app(Settings())


@app.task(name=ADVANCE)  # type: ignore[untyped-decorator]  # celery carries no types
def advance(job_id: str) -> bool:
    """Step 6; see Runner.run."""
    return runner().run(job_id)


def send(job: Job, queue: Queue, *, through: Celery = app) -> None:
    """A message for a job, unless the queue is full: then it is told of later.

    No message expires: that would compare the clocks of two machines. Raises: BrokerAway.
    """
    with broker_errors(through):
        if not is_full(queue.value, through=through):
            through.send_task(ADVANCE, args=[job.id], queue=queue.value, retry=False, ignore_result=True)


def send_push(push: Push, policy: PushPolicy, *, through: Celery = app) -> None:
    """A message that a study may have a trial for this fleet; see workers.pushed. Raises: BrokerAway."""
    with broker_errors(through):
        if is_full(policy.queue, through=through):
            return
        through.send_task(
            EVALUATE,
            args=[push.study_id, push.id, policy.objective],
            # declared by the message itself: fleets name their queues as they like
            queue=BrokerQueue(policy.queue),
            retry=False,
            ignore_result=True,
        )


def is_full(queue: str, *, through: Celery = app) -> bool:
    """Whether so many messages wait that one more would wake nobody sooner, and only fill the broker."""
    with through.connection_for_write() as connection, connection.channel() as channel:
        try:
            return bool(channel.queue_declare(queue, passive=True).message_count >= FULL)
        except connection.channel_errors:
            return False  # there is no such queue yet


def broker_trouble(through: Celery = app) -> str | None:
    """Why the broker cannot be reached; None where it can."""
    try:
        with (
            broker_errors(through),
            through.connection_for_write(connect_timeout=BROKER_SECONDS) as connection,
        ):
            connection.ensure_connection(max_retries=1, interval_start=0.2)
    except BrokerAway as error:
        BROKER.note("reaching the broker", str(error))
        return f"broker: {error}"[:200]
    return None


_runners: dict[int, Runner] = {}


def runner() -> Runner:
    """The runner of this process: connections do not survive a fork, so each process opens its own."""
    pid = os.getpid()
    if pid not in _runners:
        _runners.clear()
        services = open_services(Settings())
        _runners[pid] = Runner(
            services=services, desk=Desk(uow=services.uow, device=services.settings.device)
        )
    return _runners[pid]


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _warm_up(**_: Any) -> None:
    if Settings().tracing:
        start_tracing("compute")

    def warm_up() -> None:
        runner().desk.warm_up()

    guarded(warm_up, what="warming up")


@setup_logging.connect  # type: ignore[untyped-decorator]
def _log(**_: Any) -> None:
    settings = Settings()
    start_logging("compute", level=settings.log_level, form=settings.log_format)


_presences: list[tuple[Presence, Services]] = []


@worker_ready.connect  # type: ignore[untyped-decorator]
def _say_hello(sender: Any = None, **_: Any) -> None:
    settings = Settings()
    services = open_services(settings)
    presence = Presence(
        name=str(sender.hostname or socket.gethostname()),
        role=Role.COMPUTE,
        queues=tuple(Queue(name) for name in sender.app.amqp.queues.consume_from),
        device=settings.device,
        uow=services.uow,
        trouble=partial(broker_trouble, make_sender(settings)),
    )
    presence.start()
    logger.info("%s serves %s on %s", presence.name, ", ".join(presence.queues), settings.device)
    _presences.append((presence, services))


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _say_goodbye(**_: Any) -> None:
    # fits under way go on; nothing new is sent here
    # Celery ends them at SIGQUIT: here the second SIGTERM does, as the second Ctrl-C does anyway
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGQUIT))
    for presence, services in _presences:
        presence.stop()
        services.close()
    _presences.clear()
