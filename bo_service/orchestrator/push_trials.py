"""Between steps 6 and 2, with a fleet: a message for every trial it may evaluate. The row is the truth here, too."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from bo_service.domain.ids import PushId, StudyId, new_id
from bo_service.domain.push import Push
from bo_service.domain.spec import PushPolicy
from bo_service.domain.stopping import n_parallel_left, n_startable, reason_to_stop
from bo_service.domain.study import Study, StudyState
from bo_service.domain.trial import TrialState
from bo_service.orchestrator.bookkeeping import WORKER_MEMORY, is_short, request_compute
from bo_service.orchestrator.claim_trials import SIGHTINGS
from bo_service.orchestrator.ports import Store, UnitOfWork

SendPush = Callable[[Push, PushPolicy], None]
"""Sends one message to the policy's queue; raises whatever the broker's client raises."""

FLEET = "the fleet"
"""Stands for a study's slots among the workers that asked lately."""


def push_trials(
    study_id: StudyId, *, send: SendPush, resend_after: timedelta, asks: bool = False, uow: UnitOfWork
) -> int:
    """Announce as many trials as the study could give and its slots leave room for; returns how many messages.

    A message holds no trial: whoever gets it claims one, and a message that is late, lost or sent twice does
    nothing. Any number of relays may run: the study's lock keeps them apart. `asks` has compute prepare more
    where too little lies ready, as a worker that polls would.
    Raises: what `send` raises, after the unsent ones are taken back.
    """
    with uow() as store:
        study = store.studies.get(study_id, lock=True)
        now = store.now()
        policy = study.spec.push
        if policy is None or study.state is not StudyState.ACTIVE or reason_to_stop(study, now=now):
            return 0
        pushes = store.pushes.of_study(study.id)
        if asks:
            _ask_for_compute(study, policy, store=store, now=now)
        overdue = [push for push in pushes if push.is_overdue(now=now, resend_after=resend_after)]
        store.pushes.mark_sent([push.id for push in overdue], now=now)
        n_announced = sum(push.is_announced for push in pushes)
        count = min(_n_givable(study, store=store) - n_announced, policy.slots - len(pushes))
        new = [
            Push(id=PushId(new_id()), study_id=study.id, created_at=now, sent_at=now)
            for _ in range(max(count, 0))
        ]
        store.pushes.add(new)
        store.commit()
    _send_all([*overdue, *new], policy, send=send, uow=uow)
    return len(overdue) + len(new)


def _n_givable(study: Study, *, store: Store) -> int:
    """How many trials claims would get now."""
    n_new = min(n_startable(study)[0], store.suggestions.n_ready(study))
    return min(n_new + study.n(TrialState.QUEUED), n_parallel_left(study))


def _ask_for_compute(study: Study, policy: PushPolicy, *, store: Store, now: datetime) -> None:
    if SIGHTINGS.is_due(study.id, FLEET, policy.slots):
        store.records.saw_worker(study.id, FLEET, slots=policy.slots, now=now)
    n_slots = store.records.n_workers(study.id, since=now - WORKER_MEMORY)
    is_wanted = is_short(study, n_fresh=store.suggestions.n_fresh(study), n_slots=n_slots)
    # a job under way is not told to run again
    if is_wanted and store.jobs.in_flight(study.id) is None:
        request_compute(study, store=store, now=now)


def _send_all(pushes: list[Push], policy: PushPolicy, *, send: SendPush, uow: UnitOfWork) -> None:
    n_sent = 0
    try:
        for push in pushes:
            send(push, policy)
            n_sent += 1
    finally:
        if n_sent < len(pushes):
            with uow() as store:
                study = store.studies.get(pushes[0].study_id, lock=True)
                announced = {p.id for p in store.pushes.of_study(study.id) if p.is_announced}
                store.pushes.spend(study.id, [p.id for p in pushes[n_sent:] if p.id in announced])
                store.commit()
