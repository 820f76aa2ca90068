"""Names of receivers looked up at the machine's resolver."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from bo_service import receivers
from bo_service.orchestrator.deliver import LOOKUP_SECONDS


def test_a_resolver_that_is_silent_is_waited_for_as_long_as_senders_count_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sender has its message for SENDER_HAS, of which LOOKUP_SECONDS are for the name."""
    over, waits = threading.Event(), list[float | None]()

    def silent(*_: Any, **__: Any) -> list[Any]:
        over.wait(30)
        return []

    join = threading.Thread.join

    def noted(thread: threading.Thread, timeout: float | None = None) -> None:
        waits.append(timeout)
        join(thread, 0.05)

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    monkeypatch.setattr(threading.Thread, "join", noted)
    monkeypatch.setattr(receivers, "LOOKUP_SECONDS", 0.25)
    assert receivers.look_up("tarpit.example", 443) == []
    over.set()
    assert waits == [0.25]


def test_senders_and_look_ups_know_one_limit() -> None:
    assert receivers.LOOKUP_SECONDS is LOOKUP_SECONDS
