"""Unknown keys are slowed down, and keys that are known are not."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx2
import pytest
from fastapi import FastAPI

from bo_service.api import context as module
from bo_service.api.rates import Rates
from bo_service.bootstrap import Services
from bo_service.domain.records import ApiKey, Scope
from bo_service.main import create_app
from bo_service.orchestrator.manage_keys import create_key, revoke_key

N_STRANGERS = 10
"""So many unknown keys an address may try at once."""

pytestmark = pytest.mark.parametrize("empty_database", ["sqlite"], indirect=True)


@pytest.fixture
def app(services: Services, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """Every key is looked up anew, and an address may try few unknown ones."""
    monkeypatch.setattr(module, "KEY_MEMORY_SECONDS", 0.0)
    made = create_app(services.settings.model_copy(update={"compute": "external"}))
    strangers = Rates(N_STRANGERS / 2)
    made.state.context = replace(made.state.context, strangers=strangers)
    return made


def made_key(services: Services) -> tuple[ApiKey, str]:
    return create_key("worker", Scope.WORKER, project="default", uow=services.uow)


def statuses(app: FastAPI, *keys: str) -> list[int]:
    """What requests with these keys are answered, one after the other, from one address."""

    async def ask() -> list[int]:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:
            return [
                (await http.get("/v1/info", headers={"Authorization": f"Bearer {key}"})).status_code
                for key in keys
            ]

    return asyncio.run(ask())


def test_a_key_that_was_valid_is_let_in_beside_any_number_of_unknown_ones(app, services) -> None:
    _, known = made_key(services)
    strange = [f"bo_{i}" for i in range(2 * N_STRANGERS)]
    answers = statuses(app, known, *strange, known, known)
    assert answers[0] == 200
    assert answers.count(429) >= N_STRANGERS - 2
    assert answers[-2:] == [200, 200]


def test_look_ups_of_valid_keys_leave_the_tries_of_the_address(app, services) -> None:
    keys = [made_key(services)[1] for _ in range(2 * N_STRANGERS)]
    assert set(statuses(app, *keys)) == {200}
    assert statuses(app, "bo_unknown") == [401]


def test_a_key_that_was_valid_and_ended_is_a_stranger(app, services) -> None:
    key, text = made_key(services)
    assert statuses(app, text) == [200]
    revoke_key(key.id, project_id=key.project_id, uow=services.uow)
    answers = statuses(app, *[text] * (2 * N_STRANGERS))
    assert answers[0] == 401
    assert 429 in answers


def test_a_key_stays_known_when_another_one_is_revoked(app, services) -> None:
    _, known = made_key(services)
    strange = [f"bo_{i}" for i in range(2 * N_STRANGERS)]
    assert statuses(app, known) == [200]
    app.state.context.memory.clear()
    assert statuses(app, *strange, known)[-1] == 200
