"""One trial evaluated from claim to close: the same for threads in a notebook and worker processes."""

from __future__ import annotations

import traceback
from functools import partial
from typing import Any, Final

from bo_service.client.errors import LeaseLost, Refused, StudyClosed, TrialClosed
from bo_service.client.handle import Infeasible, Objective, TimedOut, TrialHandle
from bo_service.client.models import Study, Trial

GONE: Final = (LeaseLost, TrialClosed, StudyClosed)
"""The trial is no longer ours; the result is dropped."""


def objective_names(study: Study) -> list[str]:
    """The names of the study's objectives."""
    metrics: list[dict[str, Any]] = (study.spec or {}).get("metrics", [])
    return [m["name"] for m in metrics if m["goal"] in ("minimize", "maximize")]


def evaluate(handle: TrialHandle, objective: Objective, objectives: list[str]) -> Trial | None:
    """Run the objective under heartbeats and close the trial; None where the lease was lost meanwhile.

    An exception fails the trial with its traceback; Infeasible closes it as such, TimedOut as a timeout;
    KeyboardInterrupt and SystemExit release it and go on.
    """
    try:
        with handle.kept_alive():
            result = objective(handle)
        return _closed(handle, result, objectives)
    except GONE:
        return None
    except Infeasible as error:
        return _quietly(handle.infeasible, str(error))
    except TimedOut as error:
        return _quietly(partial(handle.fail, timed_out=True), str(error))
    except (KeyboardInterrupt, SystemExit):
        _quietly(handle.release)
        raise
    except Exception:  # noqa: BLE001  the worker boundary: whatever the objective raises is the trial's result
        return _quietly(handle.fail, traceback.format_exc())


def _closed(handle: TrialHandle, result: Any, objectives: list[str]) -> Trial | None:
    try:
        return handle.complete(result, objectives)
    except GONE:
        return None
    except Refused as error:
        # a missing or unknown metric: the objective's mistake, which its author must see
        return _quietly(handle.fail, f"the result was refused: {error}")


def _quietly(close: Any, *arguments: str) -> Trial | None:
    """Close a trial that may no longer be ours."""
    try:
        trial: Trial = close(*arguments)
    except GONE:
        return None
    return trial
