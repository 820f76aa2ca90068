"""Whose address a request has: who connected, or whom a trusted proxy names, over real HTTP."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from bo_service.settings import Settings
from tests.conftest import Service, StartService, _fresh_postgres

HERE = "127.0.0.1"
CLIENT = "203.0.113.7"

N_STRANGERS = 1000
"""An address may try 200 at once and 100 a second."""

# who serves: one process, or two that share the port
N_PROCESSES = pytest.mark.parametrize("n_processes", [1, pytest.param(2, marks=pytest.mark.postgres)])


def start(
    start_service: StartService, request: pytest.FixtureRequest, n_processes: int, **settings: str
) -> Service:
    if n_processes > 1:
        url = _fresh_postgres(request.getfixturevalue("postgres_url"))
        settings |= {"BO_DATABASE_URL": url, "TEST_API_PROCESSES": str(n_processes)}
    return start_service(**settings)


def audited(service: Service, forwarded: str) -> str:
    """The address the audit log keeps of a request that carries the header."""
    with service.http() as http:
        made = http.post(
            "/v1/keys", json={"name": "n", "scope": "viewer"}, headers={"X-Forwarded-For": forwarded}
        )
        assert made.status_code == 201, made.text
        return http.get("/v1/audit", params={"limit": 1}).json()["items"][0]["address"]


def n_refused(service: Service, *, are_many: bool) -> int:
    """How many unknown keys are refused unseen, of one client or of one client each; eight ask at a time."""
    with httpx2.Client(base_url=service.url, timeout=60) as http, ThreadPoolExecutor(8) as pool:

        def is_refused(number: int) -> bool:
            headers = {
                "Authorization": f"Bearer bo_{uuid.uuid4().hex}",
                "X-Forwarded-For": f"198.51.{number // 250}.{number % 250 + 1}" if are_many else CLIENT,
            }
            return http.get("/v1/info", headers=headers).status_code == 429

        return sum(pool.map(is_refused, range(N_STRANGERS)))


@N_PROCESSES
def test_a_forged_address_is_not_believed(start_service, request, n_processes) -> None:
    service = start(start_service, request, n_processes)
    assert audited(service, CLIENT) == HERE


@N_PROCESSES
def test_a_trusted_proxy_tells_its_clients_apart(start_service, request, n_processes) -> None:
    service = start(start_service, request, n_processes, BO_TRUSTED_PROXIES='["127.0.0.0/8"]')
    assert audited(service, CLIENT) == CLIENT
    # what a client wrote itself stands before what the proxy adds
    assert audited(service, f"10.9.9.9, {CLIENT}") == CLIENT


def test_a_proxy_that_is_not_named_is_not_believed(start_service) -> None:
    service = start_service(BO_TRUSTED_PROXIES='["192.0.2.1", "2001:db8::/32"]')
    assert audited(service, CLIENT) == HERE


def test_unknown_keys_are_limited_by_who_connects_or_whom_the_proxy_names(start_service) -> None:
    plain = start_service()
    trusting = start_service(BO_TRUSTED_PROXIES=f'["{HERE}"]')
    assert n_refused(plain, are_many=True) > 0
    assert n_refused(trusting, are_many=False) > 0
    assert n_refused(trusting, are_many=True) == 0


@pytest.mark.parametrize("given", ["proxy.lan", "*", "10.0.0.1/8", "", "1.2.3.4:80"])
def test_what_is_no_address_is_refused_by_name(given) -> None:
    with pytest.raises(ValidationError, match=r"trusted_proxies\n.*give addresses and networks"):
        Settings(trusted_proxies=["127.0.0.1", given])


def test_the_setting_is_a_list(monkeypatch) -> None:
    monkeypatch.setenv("BO_TRUSTED_PROXIES", "127.0.0.1")
    with pytest.raises(SettingsError, match="trusted_proxies"):
        Settings()
