"""LISTEN and NOTIFY: news arrive without a poll, and after a broken connection whoever waits is told to look."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import psycopg
import pytest

from bo_service.domain.ids import StudyId
from bo_service.storage.signals import PostgresSignals
from tests.conftest import _ask_postgres
from tests.waiting import until

pytestmark = [pytest.mark.postgres]

GAP = "gap"


class Ear:
    """Notes what it hears."""

    def __init__(self, url: str) -> None:
        self.heard: queue.Queue[str] = queue.Queue()
        self.signals = PostgresSignals(
            url,
            on_jobs=lambda: self.heard.put("jobs"),
            on_study=self.heard.put,
            on_gap=lambda: self.heard.put(GAP),
        )

    def next(self) -> str:
        return self.heard.get(timeout=60)


@pytest.fixture
def ear(postgres_url: str) -> Iterator[Ear]:
    """Hears already: what was said before it did is lost."""
    found = Ear(postgres_url)
    found.signals.start()
    assert found.next() == GAP
    yield found
    found.signals.stop()


@pytest.fixture
def mouth(postgres_url: str) -> Iterator[PostgresSignals]:
    """Says, and hears nothing."""
    found = PostgresSignals(postgres_url)
    found.start()
    yield found
    found.stop()


def backends(url: str, last_statement: str) -> list[int]:
    query = "SELECT pid FROM pg_stat_activity WHERE query LIKE %s AND pid <> pg_backend_pid()"
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        return [pid for (pid,) in connection.execute(query, (f"{last_statement}%",))]


def test_news_arrive_without_a_poll(ear: Ear, mouth: PostgresSignals) -> None:
    mouth.study_changed(StudyId("one"))
    assert ear.next() == "one"
    mouth.compute()
    assert ear.next() == "jobs"
    mouth.study_changed(StudyId("two"))
    assert ear.next() == "two"
    assert ear.heard.empty()


def test_who_listens_for_one_thing_does_not_hear_the_other(postgres_url: str, mouth: PostgresSignals) -> None:
    heard: queue.Queue[str] = queue.Queue()
    signals = PostgresSignals(postgres_url, on_study=heard.put, on_gap=lambda: heard.put(GAP))
    signals.start()
    assert heard.get(timeout=60) == GAP
    mouth.compute()
    mouth.study_changed(StudyId("one"))
    assert heard.get(timeout=60) == "one"
    signals.stop()


def test_a_listener_cut_off_tells_of_the_gap_and_hears_again(
    ear: Ear, mouth: PostgresSignals, postgres_url: str
) -> None:
    (pid,) = backends(postgres_url, "LISTEN")
    _ask_postgres(postgres_url, f"SELECT pg_terminate_backend({pid})")
    assert ear.next() == GAP
    assert backends(postgres_url, "LISTEN") != [pid]
    mouth.study_changed(StudyId("after"))
    assert ear.next() == "after"


def test_a_speaker_cut_off_says_it_over_the_next_connection(
    ear: Ear, mouth: PostgresSignals, postgres_url: str
) -> None:
    mouth.study_changed(StudyId("before"))
    assert ear.next() == "before"
    (pid,) = until(lambda: backends(postgres_url, "SELECT pg_notify"), "the speaker")
    _ask_postgres(postgres_url, f"SELECT pg_terminate_backend({pid})")
    until(lambda: not backends(postgres_url, "SELECT pg_notify"), "the end of its connection")
    mouth.study_changed(StudyId("after"))
    assert ear.next() == "after"
