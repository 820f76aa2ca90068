"""An HTTP process that is told to end does so, whoever listens to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import httpx2

from tests.conftest import StartService


def test_an_open_event_stream_does_not_keep_the_service_from_ending(
    start_service: StartService, make_spec: Callable[..., dict]
) -> None:
    service = start_service(BO_MAX_WAIT_SECONDS="1")
    with service.http() as http:
        study = http.post("/v1/studies", json=make_spec()).json()
    listening = threading.Event()

    def listen() -> None:
        with service.http() as http, http.stream("GET", f"/v1/studies/{study['id']}/events") as answer:
            for _ in answer.iter_lines():
                listening.set()

    def quietly() -> None:
        try:
            listen()
        except httpx2.TransportError:
            return

    thread = threading.Thread(target=quietly)
    thread.start()
    assert listening.wait(30)
    started = time.monotonic()
    service.process.terminate()
    service.process.wait(60)
    thread.join(10)
    assert not thread.is_alive()
    # no claim waits for longer than a second here; without a limit the process would outlive the test
    assert time.monotonic() - started < 60
