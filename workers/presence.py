"""Says that a process is alive, which queues it serves and what troubles it: for routing, `/readyz` and `bo status`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import bo_service
from bo_service.domain.job import Queue, Role, ServiceProcess
from bo_service.orchestrator.ports import UnitOfWork
from workers.house import guarded

SAY_ALIVE_SECONDS: Final = 5.0


def _untroubled() -> None:
    return None


@dataclass(slots=True)
class Presence:
    """One process's line in the table of processes, kept up by a thread."""

    name: str
    role: Role
    queues: tuple[Queue, ...]
    device: str
    uow: UnitOfWork
    trouble: Callable[[], str | None] = _untroubled
    is_embedded: bool = False
    _stopping: threading.Event = field(default_factory=threading.Event)
    _started_at: datetime | None = None
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Say so now, and again every few seconds."""
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Say goodbye: nothing is routed here any more."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(SAY_ALIVE_SECONDS)

    def _run(self) -> None:
        while True:
            guarded(self._say, what="saying alive")
            if self._stopping.wait(SAY_ALIVE_SECONDS):
                guarded(self._say_gone, what="saying goodbye")
                return

    def _say(self) -> None:
        # not within a transaction: a broker that does not answer takes seconds
        trouble = self.trouble()
        with self.uow() as store:
            now = store.now()
            self._started_at = self._started_at or now
            process = ServiceProcess(
                name=self.name[:128],
                role=self.role,
                queues=self.queues,
                device=self.device,
                trouble=trouble,
                is_embedded=self.is_embedded,
                version=bo_service.__version__,
                started_at=self._started_at,
                seen_at=now,
            )
            store.jobs.saw_process(process)
            store.commit()

    def _say_gone(self) -> None:
        with self.uow() as store:
            store.jobs.forget_processes(name=self.name[:128])
            store.commit()
