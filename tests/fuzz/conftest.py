"""A service of these tests' own on each kind of database."""

from __future__ import annotations

import pytest

from tests.conftest import Service, StartService, _fresh_postgres


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def running(request: pytest.FixtureRequest, start_module_service: StartService) -> Service:
    """Keys on; claims wait a moment at most, so that no generated one takes long."""
    settings = {"BO_MAX_WAIT_SECONDS": "0.2"}
    if request.param == "postgres":
        settings["BO_DATABASE_URL"] = _fresh_postgres(request.getfixturevalue("postgres_url"))
    return start_module_service(**settings)
