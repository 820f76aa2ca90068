"""Two API processes on one PostgreSQL: what is done at one is heard at the other, and a key used at both acts once."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from bo_service.client import Client
from tests.conftest import Service, StartService, _fresh_postgres
from tests.waiting import until

pytestmark = [pytest.mark.postgres]

LONG_SECONDS = 120.0
"""A claim waits so long, and looks a last time then."""

SOON_SECONDS = 60.0
"""What another process did is heard before."""


@dataclass
class Pair:
    """Two services on one database, without compute: what a claim gets, a user has enqueued."""

    here: Service
    there: Service

    def http(self, service: Service) -> httpx2.Client:
        """With one key at both."""
        return service.http(self.here.key)


@pytest.fixture(scope="module")
def pair(start_module_service: StartService, postgres_url: str) -> Pair:
    settings = {
        "BO_DATABASE_URL": _fresh_postgres(postgres_url),
        "BO_COMPUTE": "external",
        "BO_MAX_WAIT_SECONDS": str(LONG_SECONDS),
    }
    return Pair(start_module_service(**settings), start_module_service(**settings))


@pytest.fixture
def study(pair: Pair, make_spec: Callable[..., dict[str, Any]]) -> str:
    with pair.http(pair.here) as http:
        return http.post("/v1/studies", json=make_spec()).json()["id"]


def enqueue(http: httpx2.Client, study: str, k: int) -> None:
    answer = http.post(f"/v1/studies/{study}/suggestions", json={"parameters": {"x": 0.5, "k": k}})
    assert answer.status_code == 201, answer.text


def n_waiting(http: httpx2.Client) -> float:
    (found,) = re.findall(r"^bo_waiting_claims ([0-9.]+)$", http.get("/metrics").text, re.MULTILINE)
    return float(found)


@pytest.fixture
def waiting(pair: Pair, study: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """A claim that waits here; the function returns its answer."""
    body = {"worker": "w", "wait_seconds": LONG_SECONDS}
    with pair.http(pair.here) as http, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(http.post, f"/v1/studies/{study}/trials", json=body, timeout=2 * LONG_SECONDS)
        with pair.http(pair.here) as asking:
            until(lambda: n_waiting(asking) == 1, "a waiting claim")
        yield lambda: answer.result(SOON_SECONDS).json()


def test_a_waiting_claim_gets_what_is_enqueued_at_the_other(pair: Pair, study: str, waiting) -> None:
    with pair.http(pair.there) as there:
        enqueue(there, study, k=3)
    (trial,) = waiting()["trials"]
    assert trial["parameters"]["k"] == 3


def test_a_waiting_claim_gets_what_is_released_at_the_other(pair: Pair, study: str, waiting) -> None:
    with pair.http(pair.there) as there:
        enqueue(there, study, k=4)
        (first,) = waiting()["trials"]
        with pair.http(pair.here) as here, ThreadPoolExecutor(1) as pool:
            body = {"worker": "another", "wait_seconds": LONG_SECONDS}
            second = pool.submit(
                here.post, f"/v1/studies/{study}/trials", json=body, timeout=2 * LONG_SECONDS
            )
            with pair.http(pair.here) as asking:
                until(lambda: n_waiting(asking) == 1, "a waiting claim")
            released = there.post(f"/v1/trials/{first['id']}/release", json={"lease": first["lease"]})
            assert released.status_code == 200, released.text
            (again,) = second.result(SOON_SECONDS).json()["trials"]
    assert again["id"] == first["id"]
    assert again["lease"] != first["lease"]


def test_a_waiting_claim_hears_that_the_study_was_stopped_at_the_other(
    pair: Pair, study: str, waiting
) -> None:
    with pair.http(pair.there) as there:
        assert there.post(f"/v1/studies/{study}/stop").status_code == 200
    reply = waiting()
    assert (reply["trials"], reply["study_state"]) == ([], "STOPPED")


def test_an_event_stream_tells_what_happened_through_the_other(pair: Pair, study: str) -> None:
    heard: queue.Queue[tuple[str, str | None]] = queue.Queue()

    def listen() -> None:
        with Client(pair.here.url, pair.here.key) as client:
            for event in client.events(study):
                heard.put((event.kind, event.data["trial_id"]))
                if event.kind == "trial_closed":
                    return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    # the stream is open: what follows is not what it began with
    assert heard.get(timeout=60)[0] == "study_created"
    with pair.http(pair.there) as there:
        enqueue(there, study, k=5)
        claimed = there.post(f"/v1/studies/{study}/trials", json={"worker": "w"}).json()
        (trial,) = claimed["trials"]
        body = {"lease": trial["lease"], "metrics": {"loss": 1.0}}
        assert there.post(f"/v1/trials/{trial['id']}/complete", json=body).status_code == 200
    listener.join(60)
    assert not listener.is_alive()
    told = [heard.get_nowait() for _ in range(heard.qsize())]
    assert ("trial_closed", trial["id"]) in told


@pytest.mark.parametrize("round_", range(3))
def test_one_key_at_both_at_the_same_time_acts_once(pair: Pair, study: str, round_: int) -> None:
    n = 8
    with pair.http(pair.there) as there:
        for k in range(1, n + 1):
            enqueue(there, study, k=k)
    together = threading.Barrier(n)

    def ask(position: int) -> httpx2.Response:
        with pair.http((pair.here, pair.there)[position % 2]) as http:
            http.get("/healthz")
            together.wait(60)
            return http.post(
                f"/v1/studies/{study}/trials",
                # without the key each would get a trial of its own
                json={"worker": "w", "reclaim": False},
                headers={"Idempotency-Key": f"once-{study}"},
            )

    with ThreadPoolExecutor(n) as pool:
        answers = list(pool.map(ask, range(n)))
    assert [answer.status_code for answer in answers] == [200] * n
    assert len({answer.text for answer in answers}) == 1
    with pair.http(pair.here) as here:
        items = here.get(f"/v1/studies/{study}/trials").json()["items"]
    assert [item["id"] for item in items] == [answers[0].json()["trials"][0]["id"]]
