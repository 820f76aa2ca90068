"""Beside the loop: what webhooks should hear is written down in the transaction in which it happens."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from bo_service.domain.ids import DeliveryId, new_id
from bo_service.domain.notice import notice_of
from bo_service.domain.study import Study
from bo_service.domain.trial import Trial
from bo_service.domain.webhook import MAX_PENDING, Delivery, NoticeKind
from bo_service.orchestrator.ports import Store


def notify_best(trial: Trial, study: Study, *, store: Store, now: datetime) -> None:
    """The trial is the incumbent now, or joined the front."""
    _notify(study, (NoticeKind.NEW_BEST,), trial=trial, reason=None, store=store, now=now)


def notify_stopped(study: Study, *, has_failed: bool, store: Store, now: datetime) -> None:
    """The study is STOPPED; who does not listen to failures hears of one as an end like others."""
    kinds = [NoticeKind.STUDY_FAILED] if has_failed else []
    kinds.append(NoticeKind.STUDY_FINISHED)
    _notify(study, kinds, trial=None, reason=study.state_reason, store=store, now=now)


def notify_breaker(study: Study, *, store: Store, now: datetime) -> None:
    """The study's breaker opened."""
    kinds = (NoticeKind.STUDY_FAILED,)
    _notify(study, kinds, trial=None, reason=study.breaker_reason, store=store, now=now)


def _notify(
    study: Study,
    kinds: Sequence[NoticeKind],
    *,
    trial: Trial | None,
    reason: str | None,
    store: Store,
    now: datetime,
) -> None:
    """A delivery for each webhook that listens, told once; without webhooks one statement and no more."""
    listening = store.webhooks.listening(study.project_id, study.id)
    wanted = [(webhook, webhook.first_of(kinds), n_pending) for webhook, n_pending in listening]
    if not any(kind for _, kind, _ in wanted):
        return
    if trial is None and study.best_trial_id is not None:
        trial = store.trials.get(study.best_trial_id)
    deliveries = []
    for webhook, kind, n_pending in wanted:
        if kind is None:
            continue
        delivery = Delivery(
            id=DeliveryId(new_id()),
            webhook_id=webhook.id,
            study_id=study.id,
            kind=kind,
            payload=notice_of(kind, study, trial=trial, reason=reason, at=now),
            ready_at=now,
            created_at=now,
            updated_at=now,
        )
        deliveries.append(delivery if n_pending < MAX_PENDING else delivery.dropped())
    store.webhooks.add_deliveries(deliveries)
