"""The Celery application of `bo evaluate`."""

from __future__ import annotations

import json
import logging
import os
import signal
from functools import partial
from typing import Any, Final

from celery import Celery
from celery.signals import setup_logging, worker_shutting_down
from kombu import Queue as BrokerQueue

from bo_service.client import TrialHandle
from bo_service.settings import Settings
from bo_service.telemetry import start_logging
from workers.broker import PatientAMQP
from workers.evaluate import ALLOWED
from workers.pushed import register
from workers.slot import load_objective

GRACE_SECONDS: Final = 30.0
"""An objective that ignores its time limit for so long is killed."""


def make_app(settings: Settings, told: dict[str, Any]) -> Celery:
    """An application that evaluates what it was told. Late acks, so that a busy process holds no message back."""
    app = Celery("bo_evaluate", broker=settings.broker_url, amqp=PatientAMQP)
    app.conf.update(
        accept_content=["json"],
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"socket_keepalive": True},
        task_acks_late=True,
        task_create_missing_queues=False,
        task_default_queue=told["queues"][0],
        task_ignore_result=True,
        task_queues=[BrokerQueue(name) for name in told["queues"]],
        task_soft_time_limit=told["timeout"],
        task_time_limit=told["timeout"] and told["timeout"] + GRACE_SECONDS,
        task_reject_on_worker_lost=False,  # the relay pushes again once the lease is over
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_prefetch_multiplier=1,
    )
    objectives = {name: partial(_call, name) for name in told["objectives"]}
    register(app, objectives, lease_seconds=told["lease_seconds"])
    return app


def _call(name: str, handle: TrialHandle) -> Any:
    # imported by the process that evaluates: devices and threads do not survive a fork
    return load_objective(name)(handle)


app = make_app(Settings(), json.loads(os.environ[ALLOWED]))


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _hurry_at_the_second(**_: Any) -> None:
    # evaluations under way go on; Celery ends them at SIGQUIT, here the second SIGTERM does too
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGQUIT))


@setup_logging.connect  # type: ignore[untyped-decorator]
def _log(**_: Any) -> None:
    settings = Settings()
    start_logging("evaluate", level=settings.log_level, form=settings.log_format)
    for name in ("httpx2", "celery.app.trace", "celery.worker.strategy"):
        # a line for each trial is ours
        logging.getLogger(name).setLevel(logging.WARNING)
