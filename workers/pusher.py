"""The relay's side of pushing: announces trials when a pushed study changes, and now and then whatever happened."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Final

from bo_service.bootstrap import Services
from bo_service.domain.ids import StudyId
from bo_service.orchestrator.ports import UnitOfWork
from bo_service.orchestrator.push_trials import SendPush, push_trials
from workers.house import guarded

SWEEP_SECONDS: Final = 5.0
"""Every pushed study is looked at this often; without wake-ups, at every round."""

ASK_SECONDS: Final = 0.1
"""Compute is asked for more at most this often: a search space that is used up would else keep both busy."""


@dataclass(slots=True)
class Pusher:
    """Knows which studies push. Where none does, a round is one look at an empty index."""

    send: SendPush
    awake: threading.Event
    _pushed: frozenset[StudyId] = frozenset()
    _changed: set[StudyId] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _asked: dict[StudyId, float] = field(default_factory=dict)
    _next_sweep: float = 0.0

    def heard(self, study_id: StudyId) -> None:
        """Something changed in a study; wakes the relay where that study pushes."""
        if study_id in self._pushed:
            with self._lock:
                self._changed.add(study_id)
            self.awake.set()

    def missed(self) -> None:
        """Nobody knows what changed: look at all."""
        self._next_sweep = 0.0
        self.awake.set()

    def round(self, services: Services) -> int:
        """Announce what there is; returns how many messages were sent."""
        is_sweep = time.monotonic() >= self._next_sweep or services.signals is None
        if is_sweep:
            self._next_sweep = time.monotonic() + SWEEP_SECONDS
        with self._lock:
            changed, self._changed = self._changed, set()
        found = guarded(partial(_pushed_studies, services.uow), what="looking for pushed studies")
        if found is None:
            return 0
        unseen, self._pushed = found - self._pushed, found
        self._asked = {study_id: at for study_id, at in self._asked.items() if study_id in found}
        due = found if is_sweep else (changed & found) | unseen
        return sum(self._push(study_id, services=services) for study_id in due)

    def _push(self, study_id: StudyId, *, services: Services) -> int:
        asks = time.monotonic() - self._asked.get(study_id, 0.0) >= ASK_SECONDS
        if asks:
            self._asked[study_id] = time.monotonic()
        act = partial(
            push_trials,
            study_id,
            send=self.send,
            resend_after=timedelta(seconds=services.settings.job_resend_seconds),
            asks=asks,
            uow=services.uow,
        )
        n_sent = guarded(act, what=f"pushing trials of study {study_id}")
        if n_sent is None or not asks:
            # the broker is away, or compute was not asked: look again in the next round
            with self._lock:
                self._changed.add(study_id)
        return n_sent or 0


def _pushed_studies(uow: UnitOfWork) -> frozenset[StudyId]:
    with uow(read_only=True) as store:
        return frozenset(store.pushes.studies())
