"""Event streams: for whom, and how many."""

from __future__ import annotations

from contextlib import ExitStack

import httpx2
import pytest

from bo_service.api.routers.events import MAX_STREAMS
from tests.conftest import Service
from tests.waiting import until


@pytest.fixture
def study(http: httpx2.Client, make_spec) -> str:
    return str(http.post("/v1/studies", json=make_spec()).json()["id"])


def reader(service: Service, http: httpx2.Client) -> tuple[str, httpx2.Client]:
    """A viewer's key, and a client that uses it."""
    made = http.post("/v1/keys", json={"name": "reader", "scope": "viewer"}).json()
    limits = httpx2.Limits(max_connections=MAX_STREAMS + 10)
    return made["id"], service.http(made["key"], limits=limits)


def test_a_key_reads_so_many_streams_and_no_more(service: Service, http: httpx2.Client, study: str) -> None:
    _, reading = reader(service, http)
    path = f"/v1/studies/{study}/events"
    with reading, ExitStack() as open_streams:
        read = []
        for _ in range(MAX_STREAMS):
            answer = open_streams.enter_context(reading.stream("GET", path))
            assert answer.status_code == 200
            # kept, because a reader that is forgotten closes its stream
            read.append(answer.iter_lines())
            next(read[-1])
        refused = reading.get(path)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert "100 event streams" in refused.json()["detail"]
        assert int(refused.headers["Retry-After"]) > 0
        # others have streams of their own
        assert http.get(path, params={"follow": False}).status_code == 200
        open_streams.close()
        until(lambda: reading.get(path, params={"follow": False}).status_code == 200, "room again")


@pytest.mark.slow
def test_a_stream_ends_with_its_key(service: Service, http: httpx2.Client, study: str) -> None:
    key, reading = reader(service, http)
    with reading, reading.stream("GET", f"/v1/studies/{study}/events") as answer:
        lines = answer.iter_lines()
        next(lines)
        http.delete(f"/v1/keys/{key}")
        list(lines)  # it would go on for ever
