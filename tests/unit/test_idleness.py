"""When an objective worker counts as idle."""

from __future__ import annotations

from workers.idleness import PREPARING_SECONDS, WAIT_SECONDS, Idleness


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_worker_without_work_ends_at_the_time_it_was_told() -> None:
    clock = Clock()
    idle = Idleness(15.0, clock=clock)
    assert 15.0 <= idle.wait_seconds() < 15.5, "the last wait must not overrun"
    clock.now += 14.0
    assert idle.saw("budget_in_flight") is None
    assert 1.0 <= idle.wait_seconds() < 1.5
    clock.now += 1.1
    assert 15.0 < (idle.saw("budget_in_flight") or 0.0) < 15.2


def test_a_suggestion_under_way_is_no_idleness_but_not_waited_for_without_end() -> None:
    clock = Clock()
    idle = Idleness(15.0, clock=clock)
    while clock.now < 100.0 + PREPARING_SECONDS:
        assert idle.saw("preparing") is None
        clock.now += 10.0
    assert idle.saw("paused") is None, "what ends the preparation starts the other clock"
    clock.now += 16.0
    assert idle.saw("paused") is not None
    assert idle.saw("preparing") is None
    clock.now += PREPARING_SECONDS + 1
    assert idle.saw("preparing") is not None


def test_a_worker_without_a_limit_never_ends() -> None:
    clock = Clock()
    idle = Idleness(None, clock=clock)
    clock.now += 1e6
    assert idle.saw("preparing") is idle.saw("paused") is None
    assert idle.wait_seconds() == WAIT_SECONDS
