"""Places where a process can be told to die, for the fault tests; without the setting none of this runs.

A point is the moment before or after the commit of the transactions that call one method of the store:
`before:trials.add` is a claim about to be given, `after:trials.observe_final` a result that is safe and not yet
acknowledged, `after:jobs.to_send` a relay that marked its jobs and sent no message.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bo_service.domain.errors import Invalid
from bo_service.orchestrator import ports
from bo_service.orchestrator.ports import Store, UnitOfWork
from surrogates.errors import Problem

REPOSITORIES: Final = {
    "studies": ports.Studies,
    "trials": ports.Trials,
    "suggestions": ports.Suggestions,
    "jobs": ports.Jobs,
    "pushes": ports.Pushes,
    "records": ports.Records,
    "webhooks": ports.Webhooks,
}
MOMENTS: Final = ("before", "after")


@dataclass(frozen=True, slots=True)
class FailPoint:
    """Where to fail, and how: `kill` the process, or `sleep` for some seconds."""

    moment: str
    method: str
    seconds: float | None
    """None kills."""

    @property
    def name(self) -> str:
        return f"{self.moment}:{self.method}"


def parsed(text: str) -> tuple[FailPoint, ...]:
    """Points from `before:trials.add=kill,after:jobs.to_send=sleep:3`. Raises: Invalid."""
    return tuple(_point(part.strip()) for part in text.split(",") if part.strip())


def _point(text: str) -> FailPoint:
    place, _, act = text.partition("=")
    moment, _, method = place.partition(":")
    repository, _, name = method.partition(".")
    kind, _, seconds = act.partition(":")
    is_known = moment in MOMENTS and hasattr(REPOSITORIES.get(repository), name)
    is_act = act == "kill" or (kind == "sleep" and seconds.replace(".", "", 1).isdigit())
    if not (is_known and is_act):
        hint = "write before|after:REPOSITORY.METHOD=kill or =sleep:SECONDS"
        raise Invalid([Problem("BO_FAIL_POINTS", f"{text!r} is no fail point", hint=hint)])
    return FailPoint(moment, method, None if act == "kill" else float(seconds))


@dataclass(slots=True)
class _Watched:
    """A repository whose calls are noted."""

    repository: Any
    name: str
    called: set[str]

    def __getattr__(self, method: str) -> Any:
        self.called.add(f"{self.name}.{method}")
        return getattr(self.repository, method)


class _WatchedStore:
    """A store that reaches the fail points around its commit."""

    def __init__(self, store: Store, reach: Callable[[str, set[str]], None]) -> None:
        self._store = store
        self._reach = reach
        self._called: set[str] = set()
        for name in REPOSITORIES:
            setattr(self, name, _Watched(getattr(store, name), name, self._called))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self) -> None:
        self._reach("before", self._called)
        self._store.commit()
        self._reach("after", self._called)


@dataclass(frozen=True, slots=True)
class FailingUnitOfWork:
    """See ports.UnitOfWork; fails once at each of its points, whichever process of the service comes there first."""

    inner: UnitOfWork
    points: tuple[FailPoint, ...]
    marks: Path = field(default_factory=Path)
    """Folder in which a file says that a point was reached; without the file the point is armed again."""

    @contextmanager
    def __call__(self, *, read_only: bool = False) -> Iterator[Any]:
        with self.inner(read_only=read_only) as store:
            yield store if read_only else _WatchedStore(store, self._reach)

    def _reach(self, moment: str, called: set[str]) -> None:
        for point in self.points:
            if point.moment == moment and point.method in called and self._is_first(point):
                if point.seconds is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                else:
                    time.sleep(point.seconds)

    def _is_first(self, point: FailPoint) -> bool:
        self.marks.mkdir(parents=True, exist_ok=True)
        try:
            (self.marks / point.name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
