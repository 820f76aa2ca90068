"""Server-sent events as an iterator that survives broken connections."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx2

from bo_service.client.models import Event
from bo_service.client.transport import Transport

RECONNECT_SECONDS = 1.0


def read_events(http: Transport, study: str, *, after: int, follow: bool) -> Iterator[Event]:
    """Events in order, none twice; a broken stream is resumed by the last id. Raises: Refused."""
    last = after
    while True:
        headers = {"Last-Event-ID": str(last)} if last else {}
        try:
            with http.lines(
                f"/v1/studies/{study}/events", params={"follow": follow}, headers=headers
            ) as lines:
                for event in _parsed(lines):
                    last = event.seq
                    yield event
        except httpx2.TransportError:
            if not follow:
                raise
        if not follow:
            return
        time.sleep(RECONNECT_SECONDS)


def _parsed(lines: Iterator[str]) -> Iterator[Event]:
    kind, data, seq = "", "", 0
    for line in lines:
        if line.startswith("id: "):
            seq = int(line.removeprefix("id: "))
        elif line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
        elif not line and data:
            yield Event(seq=seq, kind=kind, data=json.loads(data))
            kind, data = "", ""
