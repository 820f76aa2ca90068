"""One trial evaluated from claim to close: the same for threads in a notebook and worker processes."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from bo_service.client.errors import LeaseLost, Refused, StudyClosed, TrialClosed, Unreachable
from bo_service.client.handle import Infeasible, Objective, TimedOut, TrialHandle
from bo_service.client.models import Study, Trial

GONE: Final = (LeaseLost, TrialClosed, StudyClosed)
"""The trial is no longer ours; the result is dropped."""

SERVICE_FAILED: Final = 500
"""From this status on, a refusal is no word on the result."""


def objective_names(study: Study) -> list[str]:
    """The names of the study's objectives."""
    metrics: list[dict[str, Any]] = (study.spec or {}).get("metrics", [])
    return [m["name"] for m in metrics if m["goal"] in ("minimize", "maximize")]


def evaluate(handle: TrialHandle, objective: Objective, objectives: list[str]) -> Trial | None:
    """Run the objective under heartbeats and close the trial; None where the lease was lost meanwhile.

    An exception fails the trial with its traceback; Infeasible closes it as such, TimedOut as a timeout;
    KeyboardInterrupt and SystemExit release it and go on. A service that is away fails nothing: it is asked
    again as long as the lease may last.
    Raises: Unreachable where it was away for longer; BoServiceError.
    """
    try:
        with handle.kept_alive():
            return _closed(handle, _evaluated(handle, objective, objectives))
    except GONE:
        return None
    except (KeyboardInterrupt, SystemExit):
        with suppress(*GONE, Unreachable):
            handle.release()
        raise


def _evaluated(handle: TrialHandle, objective: Objective, objectives: list[str]) -> Callable[[], Trial]:
    """The call that closes the trial as the objective ended."""
    try:
        return handle.completion(objective(handle), objectives)
    except (*GONE, Unreachable):
        # what it reported found no trial of ours, or no service
        raise
    except Infeasible as error:
        return partial(handle.infeasible, str(error))
    except TimedOut as error:
        return partial(handle.fail, str(error), timed_out=True)
    except Exception:  # noqa: BLE001  the worker boundary: whatever the objective raises is the trial's result
        return partial(handle.fail, traceback.format_exc())


def _closed(handle: TrialHandle, close: Callable[[], Trial]) -> Trial:
    try:
        return handle.insist(close)
    except GONE:
        raise
    except Refused as error:
        if error.status >= SERVICE_FAILED:
            raise
        # a missing or unknown metric: the objective's mistake, which its author must see
        return handle.insist(partial(handle.fail, f"the result was refused: {error}"))
