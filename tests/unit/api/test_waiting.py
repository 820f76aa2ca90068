"""Claims that wait: what they cost, and that none is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from bo_service.api.turns import Lookouts
from bo_service.bootstrap import Services
from bo_service.domain.ids import LeaseToken, StudyId
from bo_service.domain.spec import StudySpec
from bo_service.main import create_app
from bo_service.orchestrator.advance_study import advance_study
from bo_service.orchestrator.create_study import create_study
from bo_service.orchestrator.ports import UnitOfWork
from bo_service.orchestrator.reap import claim_job
from bo_service.orchestrator.study_view import KnownTrials
from workers.tasks import generate

N_WORKERS = 12


@dataclass
class Counted:
    """A unit of work that counts its transactions that write."""

    uow: UnitOfWork
    n: int = 0

    @contextmanager
    def __call__(self, *, read_only: bool = False) -> Iterator[Any]:
        self.n += not read_only
        with self.uow(read_only=read_only) as store:
            yield store


@pytest.fixture
def app(services: Services) -> FastAPI:
    """Without a compute process: nothing rings its bell."""
    return create_app(services.settings.model_copy(update={"require_keys": False, "compute": "external"}))


async def claims(app: FastAPI, study: StudyId, seconds: float, meanwhile: Any = None) -> list[int]:
    """Statuses of as many claims as there are workers, all waiting at the same time."""
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test", timeout=60) as http,
    ):
        asked = [
            http.post(f"/v1/studies/{study}/trials", json={"worker": f"w{i}", "wait_seconds": seconds})
            for i in range(N_WORKERS)
        ]
        waiting = asyncio.gather(*asked)
        if meanwhile is not None:
            await asyncio.sleep(0.5)
            await asyncio.to_thread(meanwhile)
        return [answer.status_code for answer in await waiting]


def test_of_those_that_wait_one_looks_at_a_time() -> None:
    lookouts = Lookouts(seconds=3600.0)
    assert [lookouts.is_due(StudyId("a")) for _ in range(5)] == [True, False, False, False, False]
    assert lookouts.is_due(StudyId("b"))


def test_a_dozen_waiting_claims_cost_little_more_than_one(app, services, project, make_spec) -> None:
    study = create_study(StudySpec.model_validate(make_spec()), project_id=project, uow=services.uow)
    counted = Counted(app.state.context.uow)
    app.state.context = replace(app.state.context, uow=counted)
    assert set(asyncio.run(claims(app, study.id, 2.0))) == {202}
    # each looks at its beginning and at its end, one of them four times a second in between; each by itself: 108
    assert counted.n <= 2 * N_WORKERS + 8 + N_WORKERS


def test_where_the_bell_is_not_heard_every_waiting_claim_still_gets_its_trial(
    app, services, project, make_spec
) -> None:
    study = create_study(StudySpec.model_validate(make_spec()), project_id=project, uow=services.uow)

    def prepare() -> None:
        while (job := claim_job(LeaseToken("test"), lease_seconds=60, uow=services.uow)) is not None:
            advance_study(job, uow=services.uow, generate=generate, known=KnownTrials())

    assert asyncio.run(claims(app, study.id, 20.0, prepare)) == [200] * N_WORKERS
