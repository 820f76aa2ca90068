"""What an objective gets: its parameters, a way to report, and a heartbeat in the background."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

from bo_service.client.client import Client, Metrics, metrics_json
from bo_service.client.errors import BoServiceError, LeaseLost, TrialClosed, Unreachable
from bo_service.client.models import ClaimedTrial, Heartbeat, Trial

HEARTBEATS_A_LEASE: Final = 3
MAX_TRACEBACK_CHARACTERS: Final = 16_384
PAUSE_SECONDS: Final = 0.5
"""Between two calls to a service that is away, each of which was patient."""

Answer = TypeVar("Answer")


class Infeasible(Exception):
    """Raised by an objective whose configuration cannot be evaluated; the model learns to avoid its like."""


class TimedOut(Exception):
    """Raised in an objective by whoever watches its time: the attempt ends as a timeout."""


class TrialHandle:
    """One running trial, as its objective sees it.

    `parameters` maps names to values (a mixture to its shares; inactive parameters are absent).
    """

    def __init__(self, client: Client, trial: ClaimedTrial) -> None:
        self._client = client
        self._trial = trial
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._cost: float | None = None
        self._metadata: dict[str, Any] = {}
        self._lease_ends = time.monotonic() + trial.lease_seconds
        self.id = trial.id
        self.number = trial.number
        self.attempt = trial.attempt
        self.parameters: Mapping[str, Any] = trial.parameters

    def __getitem__(self, name: str) -> Any:
        return self.parameters[name]

    def get(self, name: str, default: Any = None) -> Any:
        """A parameter that may be inactive."""
        return self.parameters.get(name, default)

    @property
    def lease(self) -> str:
        return self._trial.lease

    @property
    def is_lost(self) -> bool:
        """Whether another attempt owns the trial, so that the result will be dropped."""
        return self._lost.is_set()

    def report(self, step: int, **metrics: Any) -> bool:
        """Record intermediate values; returns `should_stop()`.

        Waits for a service that is away as long as the lease lasts. Raises: Unreachable, Refused.
        """
        self._noted(self.insist(partial(self._client.report, self._trial, step, metrics)))
        return self.should_stop()

    def insist(self, call: Callable[[], Answer]) -> Answer:
        """The answer to a call, made again while the service is away and the lease may be ours.

        Raises: Unreachable once the lease must be over; whatever else the call raises.
        """
        while True:
            try:
                return call()
            except Unreachable:
                if time.monotonic() > self._lease_ends:
                    raise
            time.sleep(PAUSE_SECONDS)

    def should_stop(self) -> bool:
        """Whether the result is no longer wanted: cancelled, study stopped, lease lost."""
        return self._stop.is_set()

    def cost(self, amount: float) -> None:
        """What this evaluation cost, in the study's unit of cost."""
        self._cost = float(amount)

    def note(self, **metadata: Any) -> None:
        """Keep JSON values with the trial."""
        self._metadata |= metadata

    def ask_to_stop(self) -> None:
        """Make `should_stop()` true from this side."""
        self._stop.set()

    def _noted(self, reply: Heartbeat) -> None:
        self._lease_ends = time.monotonic() + reply.lease_seconds
        if reply.should_stop:
            self._stop.set()

    @contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Send heartbeats from a thread, three a lease, until the block ends."""
        ended = threading.Event()
        pulse = threading.Thread(
            target=self._beat, args=(ended,), name=f"heartbeat-{self.number}", daemon=True
        )
        pulse.start()
        try:
            yield
        finally:
            ended.set()
            pulse.join(5.0)

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(self._trial.lease_seconds / HEARTBEATS_A_LEASE):
            try:
                self._noted(self._client.heartbeat(self._trial))
            except (LeaseLost, TrialClosed):
                self._lost.set()
                self._stop.set()
                return
            except BoServiceError:
                # the service is away; the lease may outlast it, so the next beat tries again
                continue

    def completion(self, result: Any, objectives: list[str]) -> Callable[[], Trial]:
        """The call that closes with what the objective returned.

        Raises: TypeError, ValueError where that is no result or cannot be sent.
        """
        metrics = metrics_json(as_metrics(result, objectives))
        json.dumps([metrics, self._metadata], ensure_ascii=False, allow_nan=False).encode()
        return partial(
            self._client.complete,
            self._trial,
            metrics,
            cost=self._cost,
            metadata=self._metadata,
            stopped_early=self.should_stop() and not self.is_lost,
        )

    def infeasible(self, reason: str) -> Trial:
        return self._client.infeasible(self._trial, reason)

    def fail(self, reason: str, *, timed_out: bool = False) -> Trial:
        """End the attempt with a size-limited reason."""
        return self._client.fail(self._trial, size_limited(reason), exit="timeout" if timed_out else "error")

    def release(self) -> Trial:
        return self._client.release(self._trial)


Objective = Callable[[TrialHandle], Any]


def as_metrics(result: Any, objectives: list[str]) -> Metrics:
    """What an objective returned as metrics: a mapping, or a number (or (value, sem)) for the only objective.

    Raises: TypeError with what was expected.
    """
    if isinstance(result, Mapping):
        return result
    is_number = hasattr(result, "__float__") and not isinstance(result, str)
    if len(objectives) == 1 and (is_number or (isinstance(result, tuple) and len(result) == 2)):
        return {objectives[0]: result if isinstance(result, tuple) else float(result)}
    expected = f"a number for {objectives[0]}" if len(objectives) == 1 else "a mapping"
    raise TypeError(
        f"the objective returned {type(result).__name__}; return {expected} or "
        f"{{{', '.join(f'{name!r}: number' for name in objectives)}}}"
    )


def size_limited(text: str) -> str:
    """The text with its middle left out where it is too long."""
    if len(text) <= MAX_TRACEBACK_CHARACTERS:
        return text
    half = MAX_TRACEBACK_CHARACTERS // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
