"""A state machine over HTTP, PostgreSQL and two API processes: several clients at once agree with a model in memory.

A step sends a few requests at the same moment. Their answers are right if the model, given the requests one after the
other in some order, would have answered so. Where several orders explain the answers, all the worlds they lead to are
kept, and what the service shows afterwards tells which one it is.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import httpx2
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from bo_service.bootstrap import broken_invariants, build_services
from bo_service.domain.trial import TrialState
from bo_service.settings import Settings
from tests.conftest import Service, StartService, _fresh_postgres
from tests.distributed.answers_model import (
    CLAIMS,
    MAX_ATTEMPTS,
    PARALLELISM,
    RECIPES,
    VALUES,
    Answer,
    Recipe,
    Request,
    World,
    explained,
)

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.timeout(900)]

N_CLIENTS = 4
LONG_AGO = timedelta(hours=1)
SETTLING_SECONDS = 20

ENDS = ("cancel", "expire", "heartbeat", "complete", "release")


class Together(RuleBasedStateMachine):
    """Requests in batches, each batch at one moment."""

    service: Service
    pool: ThreadPoolExecutor
    clients: list[httpx2.Client]

    @initialize()
    def start(self) -> None:
        spec = {
            "name": f"together-{uuid.uuid4().hex}",
            "parameters": [{"type": "float", "name": "x", "low": 0, "high": 1}],
            "metrics": [{"name": "loss", "goal": "minimize"}],
            "surrogate": {"name": "sobol"},
            "seed": 1,
            "parallelism": PARALLELISM,
            "retry": {"max_attempts": MAX_ATTEMPTS, "lease_seconds": 3600},
        }
        self.study = self.clients[0].post("/v1/studies", json=spec).json()["id"]
        self.worlds = [World()]
        self.leases: list[tuple[str, str]] = []
        self.acknowledged: dict[str, float] = {}
        self.history: list[str] = []
        self.n_keys = 0
        self._wait(lambda: self._read()["prepared"] > 0, "suggestions")

    def _read(self) -> dict[str, Any]:
        return self.clients[0].get(f"/v1/studies/{self.study}").json()

    def _wait(self, is_so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SETTLING_SECONDS
        while not is_so():
            assert time.monotonic() < deadline, f"no {what} within {SETTLING_SECONDS} s"
            time.sleep(0.02)

    @rule(recipes=st.lists(CLAIMS, min_size=2, max_size=4))
    def many_claim(self, recipes: list[Recipe]) -> None:
        self.together(recipes)

    @rule(recipes=st.lists(RECIPES, min_size=1, max_size=4))
    def anything(self, recipes: list[Recipe]) -> None:
        self.together(recipes)

    @rule(
        which=st.integers(0, 2),
        values=st.lists(VALUES, min_size=2, max_size=3),
        has_key=st.booleans(),
    )
    def several_complete_under_one_lease(self, which: int, values: list[float], *, has_key: bool) -> None:
        key = self._new_key() if has_key else None
        self.together([Recipe("complete", which=which, value=value, key=key) for value in values])

    @rule(which=st.integers(0, 2), kinds=st.lists(st.sampled_from(ENDS), min_size=1, max_size=3))
    def a_heartbeat_meets_an_end(self, which: int, kinds: list[str]) -> None:
        self.together([Recipe(kind, which=which) for kind in ["heartbeat", *kinds]])

    @rule(recipe=RECIPES.filter(lambda r: r.kind != "expire"), n=st.integers(2, 3))
    def one_request_comes_several_times_under_one_key(self, recipe: Recipe, n: int) -> None:
        self.together([replace(recipe, key=self._new_key())] * n)

    def _new_key(self) -> str:
        self.n_keys += 1
        return f"new-{self.n_keys}"

    def _request(self, recipe: Recipe) -> Request | None:
        """None where it would be about a lease, and there is none yet."""
        key = f"{self.study}-{recipe.key}" if recipe.key else None
        if recipe.kind in ("claim", "attach", "pause", "resume"):
            path, body = {
                "claim": (
                    "trials",
                    {"worker": recipe.worker, "count": recipe.count, "reclaim": recipe.flag},
                ),
                "attach": ("trials/attach", {"parameters": {"x": 0.5}, "metrics": {"loss": recipe.value}}),
                "pause": ("pause", {}),
                "resume": ("resume", {}),
            }[recipe.kind]
            if recipe.kind == "attach" and math.isnan(recipe.value):
                return None
            return Request(
                recipe.kind, "POST", f"/v1/studies/{self.study}/{path}", body, recipe=recipe, key=key
            )
        if not self.leases:
            return None
        trial, lease = self.leases[-1 - recipe.which % len(self.leases)]
        value = "nan" if math.isnan(recipe.value) else recipe.value
        body = {
            "heartbeat": {"lease": lease},
            "complete": {"lease": lease, "metrics": {"loss": value}},
            "fail": {"lease": lease, "reason": "r", "retry": recipe.flag},
            "infeasible": {"lease": lease},
            "release": {"lease": lease},
        }.get(recipe.kind, {})
        method = "PUT" if recipe.kind == "heartbeat" else "POST"
        if recipe.kind in ("heartbeat", "expire"):
            key = None
        path = f"/v1/trials/{trial}/{recipe.kind}"
        return Request(recipe.kind, method, path, body, trial=trial, lease=lease, recipe=recipe, key=key)

    def _send(self, request: Request, client: httpx2.Client, barrier: threading.Barrier) -> Answer:
        barrier.wait(SETTLING_SECONDS)
        if request.kind == "expire":
            with psycopg.connect(self.postgres, autocommit=True) as connection:
                connection.execute(
                    "UPDATE trials SET lease_expires_at = now() - interval '1 hour'"
                    " WHERE id = %s AND state = 'RUNNING'",
                    (request.trial,),
                )
            return Answer(0, {})
        headers = {"Idempotency-Key": request.key} if request.key else {}
        reply = client.request(request.method, request.path, json=request.body, headers=headers)
        assert reply.status_code < 500, reply.text
        return Answer(reply.status_code, reply.json(), reply.headers.get("idempotency-replayed") == "true")

    @property
    def postgres(self) -> str:
        return self.service.environment["BO_DATABASE_URL"].replace("+psycopg", "")

    def together(self, recipes: list[Recipe]) -> None:
        requests = [request for request in map(self._request, recipes) if request is not None]
        if not requests:
            return
        barrier = threading.Barrier(len(requests))
        futures = [
            self.pool.submit(self._send, request, client, barrier)
            for request, client in zip(requests, self.clients, strict=False)
        ]
        exchanges = [(request, future.result()) for request, future in zip(requests, futures, strict=True)]
        self.history.append("\n   ".join(f"{q.identity} key {q.key} -> {a}" for q, a in exchanges))
        self._wait(self._is_settled, "rest after lost leases")
        worlds = [
            world
            for before in self.worlds
            for order in permutations(exchanges)
            for world in explained(before, list(order))
        ]
        story = "\n".join(self.history[-4:])
        assert worlds, f"no order explains these answers:\n{story}"
        self.worlds = self._seen(worlds)
        assert self.worlds, f"what the service shows is none of the worlds these answers lead to:\n{story}"
        for request, answer in exchanges:
            if request.kind == "claim":
                self.leases += [(trial["id"], trial["lease"]) for trial in answer.body.get("trials", [])]
            if request.kind == "complete" and answer.status == 200 and not math.isnan(request.recipe.value):
                assert (
                    self.acknowledged.setdefault(request.trial, request.recipe.value) == request.recipe.value
                )

    def _trials(self) -> list[dict[str, Any]]:
        return self.clients[0].get(f"/v1/studies/{self.study}/trials?limit=1000").json()["items"]

    def _is_settled(self) -> bool:
        limit = datetime.now(UTC) - LONG_AGO / 2
        ends = [trial["lease_expires_at"] for trial in self._trials() if trial["lease_expires_at"]]
        return all(datetime.fromisoformat(end) > limit for end in ends)

    def _seen(self, worlds: list[World]) -> list[World]:
        """The worlds that agree with what the service shows, each once."""
        study, trials = self._read(), self._trials()
        shown = [
            (t["id"], t["number"], t["state"], t["attempts"], t["stop_requested"], value_of(t))
            for t in trials
        ]
        counts = {state: study["counts"][state.value] for state in TrialState}
        agreeing: list[World] = []
        for world in worlds:
            model = world.model
            told = [
                (i, t.number, t.state.value, t.attempt, t.stop_requested, t.value)
                for i, t in model.trials.items()
            ]
            is_so = (
                sorted(told) == sorted(shown)
                and study["state"] == model.state.value
                and counts == {state: model.n(state) for state in TrialState}
                and study["best_value"] == model.best()
            )
            if is_so and world not in agreeing:
                agreeing.append(world)
        return agreeing

    def teardown(self) -> None:
        if not hasattr(self, "worlds"):
            return
        numbers = [trial["number"] for trial in self._trials()]
        assert numbers == list(range(1, len(numbers) + 1))
        for trial_id, value in self.acknowledged.items():
            trial = self.clients[0].get(f"/v1/trials/{trial_id}").json()
            assert (trial["state"], trial["metrics"]["loss"]["value"]) == ("COMPLETED", value)
            assert [o["value"] for o in trial["observations"] if o["step"] is None] == [value]
        self.clients[0].post(f"/v1/studies/{self.study}/archive")


def value_of(trial: dict[str, Any]) -> float | None:
    return trial["metrics"].get("loss", {}).get("value")


@pytest.fixture
def together(start_service: StartService, postgres_url: str) -> Iterator[Service]:
    service = start_service(
        BO_DATABASE_URL=_fresh_postgres(postgres_url),
        TEST_API_PROCESSES="2",
        BO_REAPER_SECONDS="0.1",
        BO_RATE_LIMIT="0",
    )
    Together.service = service
    # a new connection for each request: the kernel spreads them over the processes
    limits = httpx2.Limits(max_keepalive_connections=0)
    Together.clients = [service.http(limits=limits) for _ in range(N_CLIENTS)]
    Together.pool = ThreadPoolExecutor(N_CLIENTS)
    yield service
    Together.pool.shutdown()
    for client in Together.clients:
        client.close()


def test_concurrent_clients_agree_with_the_model(together: Service) -> None:
    run_state_machine_as_test(
        Together,
        settings=settings(
            max_examples=80,
            stateful_step_count=12,
            deadline=None,
            database=None,
            # threads meet differently each time, so there is nothing to shrink
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    services = build_services(
        Settings(home=together.home, database_url=together.environment["BO_DATABASE_URL"])
    )
    broken = broken_invariants(services)
    services.close()
    assert broken == []
    log = (together.home / "service.log").read_text()
    assert "Traceback" not in log, log[log.index("Traceback") :][:4000]
