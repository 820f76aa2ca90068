"""Token buckets."""

from __future__ import annotations

import pytest

from bo_service.api import rates as module
from bo_service.api.rates import Rates


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_burst_of_two_seconds_then_the_rate(clock) -> None:
    rates = Rates(10.0)
    assert [rates.take("a") for _ in range(20)] == [0.0] * 20
    assert rates.take("a") == pytest.approx(0.1)
    clock[0] += 0.1
    assert rates.take("a") == 0.0
    assert rates.take("a") > 0.0


def test_callers_do_not_share_a_bucket(clock) -> None:
    rates = Rates(1.0)
    assert [rates.take("a") for _ in range(3)] == [0.0, 0.0, pytest.approx(1.0)]
    assert rates.take("b") == 0.0


def test_a_refused_request_costs_nothing(clock) -> None:
    rates = Rates(1.0)
    for _ in range(50):
        rates.take("a")
    clock[0] += 1.0
    assert rates.take("a") == 0.0


def test_what_is_given_back_can_be_taken_again(clock) -> None:
    rates = Rates(1.0)
    assert [rates.take("a") for _ in range(2)] == [0.0, 0.0]
    rates.give_back("a")
    assert [rates.take("a") for _ in range(2)] == [0.0, pytest.approx(1.0)]
    for _ in range(9):
        rates.give_back("a")
    assert [rates.take("a") for _ in range(3)] == [0.0, 0.0, pytest.approx(1.0)]
    rates.give_back("b")


def test_no_limit_keeps_no_buckets() -> None:
    rates = Rates(0.0)
    assert [rates.take("a") for _ in range(1000)] == [0.0] * 1000
    assert rates._buckets == {}


def test_buckets_are_bounded(clock, monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_BUCKETS", 100)
    rates = Rates(1.0)
    for i in range(1000):
        rates.take(str(i))
        clock[0] += 0.001
    assert len(rates._buckets) <= 100
