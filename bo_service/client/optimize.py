"""`client.optimize`: a study from a notebook, with threads that evaluate and a progress bar."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bo_service.client.client import Client
from bo_service.client.errors import BoServiceError
from bo_service.client.evaluate import evaluate, objective_names
from bo_service.client.handle import Objective, TrialHandle
from bo_service.client.models import Study, Trial

WAIT_SECONDS: Final = 10.0
HOPELESS: Final = 3
"""So many trials that fail first and in a row end the call: the objective is broken, not unlucky."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizeResult:
    """What came of it."""

    study: Study
    best: Trial | None
    """None with several objectives, or where nothing is feasible."""
    pareto: list[Trial]
    n_evaluated: int
    n_failed: int


class ObjectiveBroken(BoServiceError):
    """The first trials all failed; the message has the last traceback."""


@dataclass(slots=True)
class _Run:
    client: Client
    study: Study
    objective: Objective
    n_wanted: int | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)
    handles: set[TrialHandle] = field(default_factory=set)
    n_started: int = 0
    n_done: int = 0
    n_failed: int = 0
    last_failure: str | None = None
    errors: list[BaseException] = field(default_factory=list)

    def work(self, worker: str) -> None:
        """Evaluate trials until the budget is spent, the study ends or something breaks."""
        try:
            names = objective_names(self.study)
            while not self.ended.is_set() and self._may_start():
                claims = self.client.claim(self.study.id, worker, wait_seconds=WAIT_SECONDS)
                if not claims.trials:
                    self._give_back()
                    if claims.retry_after_seconds is None:
                        return
                    self.ended.wait(min(claims.retry_after_seconds, 1.0))
                    continue
                handle = TrialHandle(self.client, claims.trials[0])
                with self._registered(handle):
                    self._note(evaluate(handle, self.objective, names))
        except BoServiceError as error:
            self.errors.append(error)
            self.ended.set()

    def _may_start(self) -> bool:
        with self.lock:
            if self.n_wanted is not None and self.n_started >= self.n_wanted:
                return False
            self.n_started += 1
            return True

    def _give_back(self) -> None:
        with self.lock:
            self.n_started -= 1

    @contextmanager
    def _registered(self, handle: TrialHandle) -> Iterator[None]:
        with self.lock:
            self.handles.add(handle)
        try:
            yield
        finally:
            with self.lock:
                self.handles.discard(handle)

    def _note(self, trial: Trial | None) -> None:
        with self.lock:
            self.n_done += 1
            if trial is not None and trial.state in ("FAILED", "QUEUED"):
                self.n_failed += 1
                self.last_failure = trial.reason
            if self.n_failed >= HOPELESS and self.n_failed == self.n_done:
                self.ended.set()


def run(
    client: Client,
    study: str,
    objective: Objective,
    *,
    n_trials: int | None,
    n_workers: int,
    with_progress: bool,
) -> OptimizeResult:
    """Evaluate `objective` in threads of this process, for a study by name or id.

    Ends after `n_trials` evaluations, or when the
    study stops; Ctrl-C releases the running trials.
    Raises: ObjectiveBroken where the first three trials all failed; Unreachable, Refused.
    """
    found = client.study(study)
    if n_trials is None and not any((found.spec or {}).get("stopping", {}).get(n) for n in _ENDING_RULES):
        raise ValueError("say when to stop: give trials=..., or a stopping rule in the study")
    state = _Run(client=client, study=found, objective=objective, n_wanted=n_trials)
    stem = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"
    threads = [
        threading.Thread(target=state.work, args=(f"{stem}/{slot}",), name=f"objective-{slot}", daemon=True)
        for slot in range(max(n_workers, 1))
    ]
    try:
        for thread in threads:
            thread.start()
        _watch(state, threads, with_progress=with_progress)
    except KeyboardInterrupt:
        _release_all(state)
        raise
    if state.errors:
        raise state.errors[0]
    if state.n_failed >= HOPELESS and state.n_failed == state.n_done:
        raise ObjectiveBroken(
            f"the first {state.n_failed} trials failed; the last with:\n{state.last_failure}"
        )
    return OptimizeResult(
        study=client.study(found.id),
        best=client.best(found.id),
        pareto=client.pareto(found.id),
        n_evaluated=state.n_done,
        n_failed=state.n_failed,
    )


_ENDING_RULES: Final = (
    "max_trials",
    "max_cost",
    "max_seconds",
    "target",
    "no_improvement_trials",
    "max_failure_rate",
)


def _release_all(state: _Run) -> None:
    state.ended.set()
    with state.lock:
        handles = list(state.handles)
    for handle in handles:
        handle.ask_to_stop()
        try:
            handle.release()
        except BoServiceError:
            # closed meanwhile, or the lease will run out by itself
            continue


def _watch(state: _Run, threads: list[threading.Thread], *, with_progress: bool) -> None:
    console = Console(stderr=True, quiet=not with_progress)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("best {task.fields[best]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(state.study.name, total=state.n_wanted, best="-")
        n_shown = -1
        while any(thread.is_alive() for thread in threads):
            threads[0].join(0.2)
            if not threads[0].is_alive():
                state.ended.wait(0.1)
            if with_progress and state.n_done != n_shown:
                n_shown = state.n_done
                value = state.client.study(state.study.id).best_value
                bar.update(task, completed=n_shown, best="-" if value is None else f"{value:.6g}")
        bar.update(task, completed=state.n_done)
