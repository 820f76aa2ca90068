"""Objectives that the worker tests run in real processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from bo_service.client import Infeasible, TrialHandle


def quadratic(trial: TrialHandle) -> float:
    trial.report(1, loss=1.0)
    trial.cost(2.5)
    return (trial["x"] - 0.3) ** 2


def raises(trial: TrialHandle) -> float:
    raise RuntimeError(f"broken on purpose in trial {trial.number}")


def infeasible(trial: TrialHandle) -> float:
    raise Infeasible("does not fit into memory")


def hangs(trial: TrialHandle) -> float:
    while True:
        time.sleep(0.1)


def takes_longer_than_its_lease(trial: TrialHandle) -> float:
    time.sleep(4.0)
    return 0.5


def waits_until_stopped(trial: TrialHandle) -> dict[str, Any]:
    while not trial.should_stop():
        time.sleep(0.05)
    return {"loss": 7.0}


def kills_itself_once(trial: TrialHandle) -> float:
    mark = Path(os.environ["BO_TEST_MARK"])
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


def exits(trial: TrialHandle) -> float:
    sys.exit(3)


def waits_for_the_gate(trial: TrialHandle) -> float:
    gate = Path(os.environ["BO_TEST_GATE"])
    (gate / f"trial-{trial.number}-{trial.attempt}-{os.getpid()}").touch()
    while not (gate / "open").exists():
        time.sleep(0.02)
    return float(trial["x"])
