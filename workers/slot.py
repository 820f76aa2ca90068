"""One slot of an objective worker: a process that claims, evaluates and closes trials, one after the other."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from bo_service.client import BoServiceError, Client, TrialHandle, Unreachable
from bo_service.client.evaluate import evaluate, objective_names
from bo_service.client.handle import Objective
from workers.command import CommandObjective
from workers.idleness import Idleness

EXIT_STUDY_OVER: Final = 0
EXIT_REFUSED: Final = 3
"""The service refused us for good: the supervisor does not start this slot again."""

EXIT_UNREACHABLE: Final = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotConfig:
    """What a slot is told at its start, as JSON in its first argument."""

    study: str
    worker: str
    objective: str | None
    command: str | None
    max_trials: int | None
    idle_exit_seconds: float | None
    lease_seconds: float | None
    report_to: int
    """File descriptor on which the supervisor listens."""

    def as_json(self) -> str:
        return json.dumps(asdict(self))


def load_objective(name: str) -> Objective:
    """The function named `package.module:function`.

    Raises: ValueError with what is wrong with the name; whatever the module raises on import.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise ValueError(f"{name!r} is not of the form package.module:function")
    working_folder = str(os.getcwd())  # noqa: PTH109  sys.path holds texts
    if working_folder not in sys.path:
        sys.path.insert(0, working_folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"cannot import {module_name!r}: {error}") from error
    objective = getattr(module, function_name, None)
    if not callable(objective):
        raise ValueError(f"module {module_name!r} has no function {function_name!r}")  # noqa: TRY004
    found: Objective = objective
    return found


class Slot:
    """Claims until the study is over; tells its supervisor what it is working on."""

    def __init__(self, config: SlotConfig, client: Client) -> None:
        self._config = config
        self._client = client
        self._supervisor = os.fdopen(config.report_to, "w", buffering=1)

    def run(self) -> int:
        """The exit status."""
        config = self._config
        objective = self._objective()
        study = self._client.study(config.study)
        names = objective_names(study)
        n_done, idle = 0, Idleness(config.idle_exit_seconds)
        while config.max_trials is None or n_done < config.max_trials:
            claims = self._client.claim(
                study.id, config.worker, wait_seconds=idle.wait_seconds(), lease_seconds=config.lease_seconds
            )
            if not claims.trials:
                if claims.retry_after_seconds is None:
                    self._tell("over", reason=f"{claims.reason}")
                    return EXIT_STUDY_OVER
                if (seconds := idle.saw(claims.reason)) is not None:
                    self._tell("over", reason=f"nothing to do for {seconds:.0f} s ({claims.reason})")
                    return EXIT_STUDY_OVER
                time.sleep(min(claims.retry_after_seconds, 1.0, idle.wait_seconds()))
                continue
            handle = TrialHandle(self._client, claims.trials[0])
            self._tell("started", trial=handle.id, number=handle.number, lease=handle.lease)
            trial = evaluate(handle, self._told_of(objective), names)
            self._tell("ended", number=handle.number, state=trial.state if trial else "lost")
            n_done += 1
            idle = Idleness(config.idle_exit_seconds)
        self._tell("over", reason=f"{n_done} trials done")
        return EXIT_STUDY_OVER

    def _told_of(self, objective: Objective) -> Objective:
        """The objective, whose end the supervisor hears of: what follows is no longer its time."""

        def call(handle: TrialHandle) -> Any:
            try:
                return objective(handle)
            finally:
                self._tell("evaluated", number=handle.number)

        return call

    def _objective(self) -> Callable[[TrialHandle], Any]:
        if self._config.command is not None:
            return CommandObjective(self._config.command, lambda group: self._tell("command", group=group))
        assert self._config.objective is not None
        return load_objective(self._config.objective)

    def _tell(self, what: str, **details: Any) -> None:
        self._supervisor.write(json.dumps({"what": what, **details}) + "\n")
        self._supervisor.flush()


def main() -> int:
    """Entry point of the slot's process; SIGTERM releases the trial under way and ends it."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)

    def on_terminate(*_: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, on_terminate)
    # Ctrl-C goes to the whole foreground group; the supervisor decides and sends SIGTERM
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = SlotConfig(**json.loads(sys.argv[1]))
    with Client() as client:
        try:
            return Slot(config, client).run()
        except Unreachable as error:
            logger.error("%s", error)  # noqa: TRY400  the message says it all
            return EXIT_UNREACHABLE
        except (BoServiceError, ValueError) as error:
            logger.error("%s", error)  # noqa: TRY400
            return EXIT_REFUSED


if __name__ == "__main__":
    sys.exit(main())
