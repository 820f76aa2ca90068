"""The fleet's side of pushing: a Celery task that claims one trial over HTTP, evaluates it and closes it.

It needs the broker, BO_URL and BO_API_KEY (scope worker), never the database. `bo evaluate` runs it; in a Celery
application of your own:

    from workers.pushed import register

    register(app, {"my_project.train:train": train})
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

from billiard.exceptions import SoftTimeLimitExceeded
from billiard.process import current_process
from celery import Celery

from bo_service.client import BoServiceError, Client, TrialHandle
from bo_service.client.evaluate import evaluate, objective_names
from bo_service.client.handle import Objective, TimedOut
from bo_service.telemetry import bound_to

EVALUATE: Final = "bo.evaluate"

MAX_STUDIES: Final = 1000

logger = logging.getLogger("bo evaluate")


class WorkerEnds(SystemExit):
    """SIGTERM came: the trial is released, and the process ends."""


def register(app: Celery, objectives: Mapping[str, Objective], *, lease_seconds: float | None = None) -> None:
    """Let the application's workers evaluate pushed trials with these objectives, by the names studies give them.

    A message that names another objective is refused and claims nothing: what runs here is chosen here.
    `lease_seconds` is how long a silent worker keeps its trial, by default what the study says.
    """

    @app.task(name=EVALUATE, acks_late=True, ignore_result=True)  # type: ignore[untyped-decorator]
    def evaluate_pushed(study_id: str, push_id: str, objective_name: str) -> bool:
        """True where a trial was evaluated; a message that comes twice, late or for nothing does nothing."""
        with bound_to(study=study_id, push=push_id):
            objective = objectives.get(objective_name)
            if objective is None:
                logger.error("refused: %r is not an objective this worker allows", objective_name)
                return False
            try:
                return evaluate_one(study_id, push_id, objective, lease_seconds=lease_seconds)
            except BoServiceError as error:
                # the trial, if there is one, goes back with its lease; the relay sends another message
                logger.warning("gave up: %s", error)
                return False
            except SoftTimeLimitExceeded:
                logger.warning("gave up: the time limit came before the service was back")
                return False


def evaluate_one(
    study_id: str, push_id: str, objective: Objective, *, lease_seconds: float | None = None
) -> bool:
    """Claim the trial a push stands for, if it still stands for one, and see it through; False where there was none.

    Raises: BoServiceError.
    """
    process = os.getpid()
    client, names = client_of(process), names_of(process, study_id)
    with _ended_by_sigterm():
        claims = client.claim(
            study_id,
            f"{socket.gethostname()}:{process}",
            lease_seconds=lease_seconds,
            reclaim=False,
            push=push_id,
        )
        if not claims.trials:
            logger.debug("nothing to evaluate: %s", claims.reason)
            return False
        handle = TrialHandle(client, claims.trials[0])
        with bound_to(trial=handle.id):
            trial = evaluate(handle, _bounded(objective), names)
            logger.info("trial %d %s", handle.number, trial.state if trial else "lost")
    return True


@lru_cache(maxsize=1)
def client_of(process: int) -> Client:
    """The client of a process: connections do not survive a fork."""
    del process
    return Client()


@lru_cache(maxsize=MAX_STUDIES)
def names_of(process: int, study_id: str) -> list[str]:
    """The names of a study's objectives, which never change. Raises: BoServiceError."""
    return objective_names(client_of(process).study(study_id))


def _bounded(objective: Objective) -> Objective:
    """The objective, its time limit told as such, and without the power to end the worker."""

    def call(handle: TrialHandle) -> Any:
        try:
            return objective(handle)
        except SoftTimeLimitExceeded:
            raise TimedOut("timeout: no result within the worker's time limit") from None
        except WorkerEnds:
            raise
        except SystemExit as error:
            raise RuntimeError(f"the objective called sys.exit({error.code!r})") from error

    return call


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """In a pool's child, let SIGTERM (a cold shutdown) raise WorkerEnds; elsewhere it means something else."""
    is_child = current_process().name != "MainProcess"
    if not is_child or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        # a second one shall not cut the release short
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise WorkerEnds(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
