"""A line when something goes, one a minute, and one when it is back."""

from __future__ import annotations

import logging

import pytest

from bo_service.domain.errors import Contention, Unavailable
from bo_service.outages import BROKER, DATABASE, BrokerAway, Outage, Seldom
from workers.house import guarded


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_outage_is_told_at_its_begin_its_end_and_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    outage = Outage("the sun", clock=clock)
    for _ in range(100):
        outage.note("shining", "clouds")
        outage.note("warming", "clouds")
        clock.now += 1
    outage.over("what never failed")
    outage.over("warming")
    outage.over("shining")
    assert [record.getMessage() for record in caplog.records] == [
        "the sun is away, and tried again all the while: clouds",
        "the sun is still away after 60 s: clouds",
        "the sun is back after 100 s",
    ]


def test_lines_that_come_seldom_count_the_others() -> None:
    clock = Clock()
    seldom = Seldom(clock=clock)
    assert seldom.passes() == 0
    assert [seldom.passes() for _ in range(5)] == [None] * 5
    clock.now += 61
    assert seldom.passes() == 5
    clock.now += 61
    assert seldom.passes() == 0


@pytest.mark.parametrize("error", [Unavailable("away"), BrokerAway("redis://127.0.0.1: refused")])
def test_a_round_that_misses_a_server_leaves_no_traceback(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def act() -> None:
        raise error

    for _ in range(10):
        assert guarded(act, what="a round") is None
    assert len(caplog.records) == 1
    assert caplog.records[0].exc_info is None
    DATABASE.over()
    BROKER.over()


def test_contention_is_no_outage(caplog: pytest.LogCaptureFixture) -> None:
    def act() -> None:
        raise Contention("a deadlock")

    guarded(act, what="a round")
    guarded(lambda: None, what="a round")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
