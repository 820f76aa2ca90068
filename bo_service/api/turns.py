"""Who waits for whom: few transactions of one study at a time, and one look at a time of those that wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from bo_service.domain.ids import ProjectId, StudyId, TrialId

N_AT_ONCE: Final = 2
"""One works under the study's lock while the next is read, sent to a thread, and waits for the lock."""

MAX_REMEMBERED: Final = 100_000
MAX_STUDIES: Final = 10_000


@dataclass(slots=True)
class _Queue:
    turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(N_AT_ONCE))
    n_inside: int = 0


@dataclass(slots=True)
class Turns:
    """First come, first served, study by study; who waits holds neither a thread nor a connection.

    Without it, sixty requests of one study hold sixty threads that wake each other at every statement
    (docs/adr/0009). Used from the event loop alone.
    """

    _queues: dict[str, _Queue] = field(default_factory=dict)
    _study_of: dict[TrialId, StudyId] = field(default_factory=dict)
    _meant: dict[tuple[ProjectId, str], StudyId] = field(default_factory=dict)

    @asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it inside."""
        queue = self._queues.setdefault(name, _Queue())
        queue.n_inside += 1
        try:
            async with queue.turn:
                yield
        finally:
            queue.n_inside -= 1
            if not queue.n_inside:
                del self._queues[name]

    def remember(self, trial_id: TrialId, study_id: StudyId) -> None:
        """Note whose turn a trial's requests wait for."""
        if len(self._study_of) >= MAX_REMEMBERED:
            del self._study_of[next(iter(self._study_of))]
        self._study_of[trial_id] = study_id

    def remember_name(self, project_id: ProjectId, key: str, study_id: StudyId) -> None:
        """Note which study a project means by a name or an id."""
        if len(self._meant) >= MAX_REMEMBERED:
            del self._meant[next(iter(self._meant))]
        self._meant[project_id, key] = study_id

    def of_study(self, project_id: ProjectId, key: str) -> str:
        """The study itself once it is known; before, turns of this project alone, who may be wrong about the study."""
        return self._meant.get((project_id, key), f"{project_id}/{key}")

    def study_of(self, trial_id: TrialId) -> str:
        """The study of a trial claimed in this process; of another one the trial itself, which has its own turns."""
        return self._study_of.get(trial_id, trial_id)


@dataclass(slots=True)
class Lookouts:
    """Of all who wait for a study, one looks at a time.

    Sixty workers that each look four times a second leave a small machine no time to compute what they wait for.
    """

    seconds: float = 0.25
    _looked: dict[StudyId, float] = field(default_factory=dict)

    def is_due(self, study_id: StudyId) -> bool:
        """Whether nobody looked lately; then the caller does."""
        now = time.monotonic()
        if now - self._looked.get(study_id, 0.0) < self.seconds:
            return False
        if len(self._looked) >= MAX_STUDIES:
            self._looked.clear()
        self._looked[study_id] = now
        return True
