"""Tries, pauses, giving up, disabling, and what a message says."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from bo_service.domain.ids import DeliveryId, ProjectId, StudyId, TrialId, WebhookId
from bo_service.domain.notice import body_of, notice_of
from bo_service.domain.proposal import Measurement
from bo_service.domain.spec import StudySpec
from bo_service.domain.study import Study, StudyState
from bo_service.domain.trial import Provenance, Trial, TrialSource, TrialState
from bo_service.domain.webhook import (
    LISTENABLE,
    MAX_TRIES,
    Answer,
    Delivery,
    DeliveryState,
    NoticeKind,
    Webhook,
    WebhookFormat,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BAD = Answer(status=500)


@pytest.fixture
def webhook() -> Webhook:
    return Webhook(
        id=WebhookId("w"),
        project_id=ProjectId("p"),
        study_id=None,
        url="https://example.com/",
        kinds=LISTENABLE,
        format=WebhookFormat.JSON,
        secret_check="c",
        created_at=NOW,
    )


@pytest.fixture
def delivery() -> Delivery:
    return Delivery(
        id=DeliveryId("d"),
        webhook_id=WebhookId("w"),
        study_id=None,
        kind=NoticeKind.PING,
        payload={},
        ready_at=NOW,
        created_at=NOW,
        updated_at=NOW,
    )


def failing(delivery: Delivery, *, jitter: float) -> list[float]:
    """The pauses in seconds until it is given up."""
    pauses = []
    while delivery.state is DeliveryState.PENDING:
        taken = delivery.taken(until=NOW + timedelta(minutes=1))
        delivery = taken.after(BAD, is_last=False, now=NOW, jitter=jitter)
        if delivery.state is DeliveryState.PENDING:
            pauses.append((delivery.ready_at - NOW).total_seconds())
    assert delivery.n_tries == MAX_TRIES
    return pauses


def test_the_pauses_grow_and_then_the_delivery_is_given_up(delivery: Delivery) -> None:
    assert failing(delivery, jitter=0.0) == [5, 30, 120, 600, 3600, 21_600]
    assert failing(delivery, jitter=0.5) == pytest.approx([5.5, 33, 132, 660, 3960, 23_760])


def test_a_good_answer_ends_it_and_clears_the_error(delivery: Delivery) -> None:
    failed = delivery.taken(until=NOW).after(BAD, is_last=False, now=NOW, jitter=0.0)
    assert failed.last_error == "answered 500"
    good = failed.taken(until=NOW).after(Answer(status=204), is_last=False, now=NOW, jitter=0.0)
    assert (good.state, good.last_error, good.status, good.id) == (
        DeliveryState.DELIVERED,
        None,
        204,
        delivery.id,
    )


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 500])
def test_only_2xx_is_good(status: int) -> None:
    assert not Answer(status=status).is_good
    assert ("redirects" in Answer(status=status).reason) == (status < 400)


def test_410_disables_at_once(webhook: Webhook) -> None:
    gone = webhook.after(Answer(status=410), now=NOW)
    assert gone.disabled_at == NOW
    assert "410" in (gone.disabled_reason or "")


def test_days_of_failing_disable_and_one_good_answer_starts_the_count_anew(webhook: Webhook) -> None:
    day = timedelta(days=1)
    failing = webhook.after(BAD, now=NOW).after(BAD, now=NOW + 2 * day)
    assert failing.failing_since == NOW
    assert failing.disabled_at is None
    assert failing.after(BAD, now=NOW + 3 * day).disabled_at == NOW + 3 * day
    well = failing.after(Answer(status=200), now=NOW + 2 * day)
    assert well.failing_since is None
    assert well.after(BAD, now=NOW + 4 * day).disabled_at is None
    assert failing.after(BAD, now=NOW + 3 * day).enabled().disabled_at is None


def test_for_a_day_after_a_rotation_both_secrets_sign(webhook: Webhook) -> None:
    assert webhook.generations(NOW) == (1,)
    rotated = webhook.rotated("d", now=NOW)
    assert rotated.generations(NOW + timedelta(hours=23)) == (2, 1)
    assert rotated.generations(NOW + timedelta(hours=25)) == (2,)


def test_one_happening_is_told_once_under_its_strongest_name(webhook: Webhook) -> None:
    kinds = (NoticeKind.STUDY_FAILED, NoticeKind.STUDY_FINISHED)
    assert webhook.first_of(kinds) is NoticeKind.STUDY_FAILED
    finished_only = replace(webhook, kinds=(NoticeKind.STUDY_FINISHED,))
    assert finished_only.first_of(kinds) is NoticeKind.STUDY_FINISHED
    assert replace(webhook, kinds=(NoticeKind.NEW_BEST,)).first_of(kinds) is None


@pytest.fixture
def study(make_spec) -> Study:
    return Study(
        id=StudyId("s"),
        project_id=ProjectId("p"),
        spec=StudySpec.model_validate(make_spec(name="mix")),
        seed=1,
        created_at=NOW,
        updated_at=NOW,
    )


@pytest.fixture
def trial() -> Trial:
    return Trial(
        id=TrialId("t"),
        study_id=StudyId("s"),
        number=17,
        state=TrialState.COMPLETED,
        parameters={"x": 0.5, "k": 2},
        source=TrialSource.ATTACHED,
        provenance=Provenance(generator="user"),
        measurements={"loss": Measurement(value=0.125)},
        created_at=NOW,
        updated_at=NOW,
    )


def test_a_message_names_study_reason_and_best_value(study: Study, trial: Trial) -> None:
    best = notice_of(NoticeKind.NEW_BEST, study, trial=trial, reason=None, at=NOW)
    assert best["text"] == "Study mix: trial 17 is the new best, loss = 0.125."
    assert best["timestamp"] == "2026-01-01T00:00:00.000Z"
    assert best["data"]["trial"]["metrics"] == {"loss": {"value": 0.125, "sem": None}}
    stopped = replace(study, state=StudyState.STOPPED)
    over = notice_of(NoticeKind.STUDY_FINISHED, stopped, trial=trial, reason="max_trials: 20", at=NOW)
    assert over["text"] == "Study mix has stopped (max_trials: 20). Best so far: trial 17, loss = 0.125."
    failed = notice_of(NoticeKind.STUDY_FAILED, stopped, trial=None, reason="max_failure_rate: 9", at=NOW)
    assert failed["text"] == "Study mix has failed (max_failure_rate: 9)."
    broken = notice_of(NoticeKind.STUDY_FAILED, study, trial=None, reason="r" * 9000, at=NOW)
    assert broken["text"].startswith("Study mix goes on without its model (rrr")
    assert len(broken["text"]) < 600


def test_a_chat_service_gets_one_sentence_in_which_nothing_is_a_command(study: Study) -> None:
    payload = notice_of(
        NoticeKind.STUDY_FINISHED, study, trial=None, reason="<!channel> & <http://x|y>", at=NOW
    )
    body = json.loads(body_of(payload, WebhookFormat.SLACK))
    assert list(body) == ["text"]
    assert "<" not in body["text"]
    assert "&lt;!channel&gt; &amp;" in body["text"]
    assert json.loads(body_of(payload, WebhookFormat.JSON)) == payload
