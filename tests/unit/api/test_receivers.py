"""Names of receivers are looked up when a webhook is made: slowly, or no longer, and what that costs the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx2
import pytest
from fastapi import FastAPI

from bo_service.api.app import N_THREADS
from bo_service.bootstrap import Services
from bo_service.domain.errors import Invalid
from bo_service.domain.target import NOT_ALLOWED
from bo_service.main import create_app
from surrogates.errors import Problem
from tests.webhook_steps import MASTER

BODY = {"url": "https://hooks.example/"}


@pytest.fixture
def app(services: Services) -> FastAPI:
    settings = services.settings.model_copy(
        update={"require_keys": False, "compute": "external", "broker_url": "", "secret_key": None}
    )
    made = create_app(settings)
    made.state.context = replace(made.state.context, secret_key=lambda: MASTER)
    return made


@asynccontextmanager
async def asking(app: FastAPI, check: Callable[[str], object]) -> AsyncIterator[httpx2.AsyncClient]:
    app.state.context = replace(app.state.context, check_receiver=check)
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test", timeout=60) as http,
    ):
        yield http


def test_names_that_take_long_leave_the_threads_of_the_others(app: FastAPI) -> None:
    over, n_now, most = threading.Event(), 0, 0
    lock = threading.Lock()

    def slow(url: str) -> None:
        nonlocal n_now, most
        with lock:
            n_now += 1
            most = max(most, n_now)
        over.wait(10)
        with lock:
            n_now -= 1

    async def ask() -> list[int]:
        async with asking(app, slow) as http:
            creations = [asyncio.create_task(http.post("/v1/webhooks", json=BODY)) for _ in range(N_THREADS)]
            await asyncio.sleep(0.5)
            async with asyncio.timeout(5):
                listed = await http.get("/v1/webhooks")
            over.set()
            return [listed.status_code, *[answer.status_code for answer in await asyncio.gather(*creations)]]

    statuses = asyncio.run(ask())
    assert statuses == [200] + [201] * N_THREADS
    assert most == 2, "of one project, so that other projects have theirs"


def test_a_webhook_asked_for_again_is_given_though_its_name_is_gone(app: FastAPI) -> None:
    is_there = True

    def check(url: str) -> None:
        if not is_there:
            raise Invalid([Problem("url", NOT_ALLOWED, None)])

    async def ask() -> list[httpx2.Response]:
        nonlocal is_there
        async with asking(app, check) as http:
            asked = {"headers": {"Idempotency-Key": "k"}, "json": BODY}
            first = await http.post("/v1/webhooks", **asked)
            is_there = False
            again = await http.post("/v1/webhooks", **asked)
            new = await http.post("/v1/webhooks", json=BODY, headers={"Idempotency-Key": "other"})
            return [first, again, new]

    first, again, new = asyncio.run(ask())
    assert [first.status_code, again.status_code, new.status_code] == [201, 201, 422]
    assert again.json() == first.json() | {"secret": None}
