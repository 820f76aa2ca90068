"""Secrets are planted, the service is driven through good, bad and broken requests, and then everything is searched.

Where a secret may stand is said in PLACES, column by column; anywhere else it is a leak.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import psycopg
import pytest
from pydantic import ValidationError
from sqlalchemy import make_url, select

from bo_service.bootstrap import build_services
from bo_service.settings import Settings
from bo_service.storage.tables import Table
from tests.conftest import Service, StartService, _fresh_postgres, spec_json

pytestmark = pytest.mark.postgres

PLACES = {
    "lease": {"trials.lease", "attempts.lease", "idempotency_keys.body"},
    "idempotency key": {"idempotency_keys.key"},
    "path of a webhook": {"webhooks.url", "audit_log.subject", "idempotency_keys.body"},
}
"""Columns a secret belongs in; no other secret is stored at all.

A claim's stored answer holds its lease, or a lost answer could not be given again. Whoever reads that table reads the
leases in `trials` too, and a lease is worth nothing once it has ended.
"""

AWKWARD = "@:/?#[]%&é"
"""Characters a password may have and a URL must not."""


def canary(name: str) -> str:
    return f"canary{name}{secrets.token_hex(8)}"


@dataclass
class Planted:
    """A service full of secrets, and everything it was heard to say."""

    service: Service
    database: str
    admin_url: str
    password: str
    broker_password: str
    master_key: str
    webhook_path: str
    idempotency_key: str
    keys: list[str] = field(default_factory=list)
    leases: list[str] = field(default_factory=list)
    webhook_secrets: list[str] = field(default_factory=list)
    answers: list[tuple[str, httpx2.Response]] = field(default_factory=list)

    def secrets(self) -> dict[str, list[str]]:
        """By what they are; of an API key the part behind the prefix that lists show."""
        return {
            "password": [self.password],
            "broker's password": [self.broker_password],
            "master key": [self.master_key],
            "API key": [key[10:] for key in self.keys],
            "lease": self.leases,
            "idempotency key": [self.idempotency_key],
            "path of a webhook": [self.webhook_path],
            "webhook's secret": self.webhook_secrets,
        }

    def ask(self, http: httpx2.Client, method: str, path: str, **options: Any) -> httpx2.Response:
        answer = http.request(method, path, **options)
        self.answers.append((f"{method} {path}", answer))
        return answer

    def on_server(self, statement: str) -> None:
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            connection.execute(statement.encode())

    def on_database(self, statement: str) -> None:
        with psycopg.connect(plain(self.settings.database_url), autocommit=True) as connection:
            connection.execute(statement.encode())

    @property
    def settings(self) -> Settings:
        return Settings(home=self.service.home, database_url=self.service.environment["BO_DATABASE_URL"])


def plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.fixture(scope="module", params=["json", pytest.param("text", marks=pytest.mark.slow)])
def planted(
    request: pytest.FixtureRequest, start_module_service: StartService, postgres_url: str
) -> Iterator[Planted]:
    """A database user of these tests' own, with a password that has every awkward character."""
    password, role = canary("password"), f"canary_{secrets.token_hex(4)}"
    url = make_url(_fresh_postgres(postgres_url))
    database, admin_url = str(url.database), plain(postgres_url)
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}{AWKWARD}'".encode())
        connection.execute(f'ALTER DATABASE "{database}" OWNER TO {role}'.encode())
    with psycopg.connect(plain(url.render_as_string(hide_password=False)), autocommit=True) as connection:
        connection.execute(f"GRANT ALL ON SCHEMA public TO {role}".encode())
    url = url.set(username=role, password=f"{password}{AWKWARD}")
    broker_password, master_key = canary("broker"), canary("master") * 2
    service = start_module_service(
        BO_DATABASE_URL=url.render_as_string(hide_password=False),
        BO_BROKER_URL=f"redis://:{broker_password}{quote(AWKWARD, safe='')}@127.0.0.1:1/0",
        BO_SECRET_KEY=master_key,
        BO_WEBHOOK_ALLOW='["127.0.0.1"]',
        BO_LOG_LEVEL="debug",
        BO_LOG_FORMAT=request.param,
        BO_REAPER_SECONDS="0.2",
    )
    found = Planted(
        service, database, admin_url, password, broker_password, master_key, canary("path"), canary("once")
    )
    found.keys.append(service.key)
    yield found
    service.process.terminate()
    service.process.wait(30)
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{database}" WITH (FORCE)'.encode())
        connection.execute(f"DROP ROLE {role}".encode())


def good_requests(planted: Planted, http: httpx2.Client) -> tuple[str, dict[str, Any]]:
    """A study worked on under an idempotency key; the study and a trial that is still held."""
    once = {"Idempotency-Key": planted.idempotency_key}
    study = planted.ask(http, "POST", "/v1/studies", json=spec_json()).json()["id"]
    claim = {"worker": "w", "count": 2, "wait_seconds": 20, "reclaim": False}
    while True:
        first = planted.ask(http, "POST", f"/v1/studies/{study}/trials", json=claim, headers=once)
        if len(first.json()["trials"]) == 2:
            break
    again = planted.ask(http, "POST", f"/v1/studies/{study}/trials", json=claim, headers=once)
    assert again.json() == first.json()
    done, held = first.json()["trials"]
    planted.leases += [done["lease"], held["lease"]]
    url = f"/v1/trials/{done['id']}"
    planted.ask(http, "PUT", f"{url}/heartbeat", json={"lease": done["lease"]})
    progress = {"lease": done["lease"], "step": 1, "metrics": {"loss": 1}}
    planted.ask(http, "POST", f"{url}/observations", json=progress)
    planted.ask(http, "POST", f"{url}/complete", json={"lease": done["lease"], "metrics": {"loss": 1}})
    for path in (
        "",
        "/trials",
        "/suggestions",
        "/best",
        "/pareto",
        "/fits",
        "/export",
        "/events?follow=false",
    ):
        planted.ask(http, "GET", f"/v1/studies/{study}{path}")
    for trial in (done, held):
        planted.ask(http, "GET", f"/v1/trials/{trial['id']}")
    return study, held


def keys_and_webhooks(planted: Planted, http: httpx2.Client) -> None:
    made = planted.ask(http, "POST", "/v1/keys", json={"name": "n", "scope": "viewer"}).json()
    planted.keys.append(made["key"])
    rotated = planted.ask(http, "POST", f"/v1/keys/{made['id']}/rotate", json={"grace_seconds": 60}).json()
    planted.keys.append(rotated["key"])
    receiver = {"url": f"http://127.0.0.1:9998/{planted.webhook_path}"}
    webhook = planted.ask(http, "POST", "/v1/webhooks", json=receiver).json()
    planted.webhook_secrets.append(webhook["secret"])
    rotated = planted.ask(http, "POST", f"/v1/webhooks/{webhook['id']}/rotate").json()
    planted.webhook_secrets.append(rotated["secret"])
    planted.ask(http, "POST", f"/v1/webhooks/{webhook['id']}/test")
    for path in ("/v1/keys", "/v1/webhooks", "/v1/audit", "/v1/status", "/metrics", "/v1/info", "/readyz"):
        planted.ask(http, "GET", path)
    with planted.service.http(made["key"]) as viewer:
        seen = planted.ask(viewer, "GET", "/v1/webhooks")
        assert planted.webhook_path not in seen.text


def bad_requests(planted: Planted, http: httpx2.Client, study: str, held: dict[str, Any]) -> None:
    """Secrets in every wrong place: nobody should read them back from a refusal."""
    key, lease, url = planted.service.key, held["lease"], planted.service.url
    for header in (key, f"Basic {key}", f"Token {key}", f"{key} {key}", f"Bearer {key}x", f"Bearer x{key}"):
        with httpx2.Client(base_url=url, headers={"Authorization": header}, timeout=60) as stranger:
            assert planted.ask(stranger, "GET", "/v1/studies").status_code == 401
    json_type = {"Content-Type": "application/json"}
    trial = f"/v1/trials/{held['id']}"
    refused = [
        planted.ask(http, "POST", f"{trial}/complete", content=f'{{"lease": "{lease}"', headers=json_type),
        planted.ask(http, "POST", f"{trial}/complete", json={"lease": [lease], "metrics": {}}),
        planted.ask(http, "POST", f"{trial}/complete", json={"lease": lease, "metrics": {"nope": 1}}),
        planted.ask(http, "POST", f"{trial}/complete", json=lease),
        planted.ask(http, "PUT", f"{trial}/heartbeat", json={"lease": lease + "\x00"}),
        planted.ask(http, "POST", f"{trial}/observations", json={"lease": lease * 4, "step": "x"}),
        planted.ask(http, "POST", "/v1/keys", json={"name": "n", "scope": key}),
        planted.ask(http, "POST", "/v1/webhooks", json={"url": f"ftp://h/{planted.webhook_path}"}),
        planted.ask(http, "POST", "/v1/webhooks", json={"url": f"http://u:{planted.webhook_path}@127.0.0.1:9998/"}),
        planted.ask(http, "POST", "/v1/webhooks", json={"url": f"http://10.0.0.1/{planted.webhook_path}"}),
    ]  # fmt: skip
    for once in (planted.idempotency_key, planted.idempotency_key * 20):
        headers = {"Idempotency-Key": once}
        refused.append(planted.ask(http, "POST", "/v1/studies", json=spec_json(), headers=headers))
    late = {"lease": planted.leases[0], "metrics": {"loss": 2}}
    first = planted.ask(http, "GET", f"/v1/studies/{study}/trials").json()["items"][0]["id"]
    refused.append(planted.ask(http, "POST", f"/v1/trials/{first}/complete", json=late))
    assert {answer.status_code for answer in refused} <= {409, 422}, [a.text for a in refused]


def broken_requests(planted: Planted, http: httpx2.Client, study: str, held: dict[str, Any]) -> None:
    """A defect (a table that is gone) under every kind of request: 500, and the reason in the log."""
    once = {"Idempotency-Key": f"{planted.idempotency_key}-broken"}
    trial, lease = f"/v1/trials/{held['id']}", held["lease"]
    result = {"lease": lease, "metrics": {"loss": 1}}
    with planted.service.http(f"{planted.service.key}-unknown") as stranger:
        for table, client, method, path, body in [
            ("api_keys", stranger, "GET", "/v1/info", None),
            ("idempotency_keys", http, "POST", "/v1/studies", spec_json()),
            ("attempts", http, "PUT", f"{trial}/heartbeat", {"lease": lease}),
            ("attempts", http, "POST", f"/v1/studies/{study}/trials", {"worker": "w", "count": 2}),
            ("observations", http, "POST", f"{trial}/complete", result),
            ("webhooks", http, "POST", "/v1/webhooks", {"url": f"http://127.0.0.1:9998/{planted.webhook_path}"}),
            ("fits", http, "GET", f"/v1/studies/{study}/fits", None),
        ]:  # fmt: skip
            planted.on_database(f"ALTER TABLE {table} RENAME TO {table}_gone")
            try:
                answer = planted.ask(client, method, path, json=body, headers=once)
            finally:
                planted.on_database(f"ALTER TABLE {table}_gone RENAME TO {table}")
            assert answer.status_code == 500, f"{table}: {answer.text}"


def requests_without_a_database(planted: Planted, http: httpx2.Client, study: str) -> None:
    """The server turns the service away for a moment."""
    name = planted.database
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"  # noqa: S608  ours
    planted.on_server(f'ALTER DATABASE "{name}" CONNECTION LIMIT 0')
    try:
        planted.on_server(end)
        once = {"Idempotency-Key": f"{planted.idempotency_key}-lost"}
        seen = [
            planted.ask(http, "GET", f"/v1/studies/{study}").status_code,
            planted.ask(http, "POST", "/v1/studies", json=spec_json(), headers=once).status_code,
            planted.ask(http, "GET", "/readyz").status_code,
        ]
    finally:
        planted.on_server(f'ALTER DATABASE "{name}" CONNECTION LIMIT -1')
    assert set(seen) == {503}


def where_it_may_be_answered(what: str, request: str, answer: httpx2.Response) -> bool:
    """The answers that hand a secret out, each to whom it belongs."""
    if answer.status_code not in (200, 201):
        return False
    if what == "lease":
        return request.endswith("/trials") and request.startswith("POST")
    if what == "API key":
        return request == "POST /v1/keys" or request.endswith("/rotate")
    if what == "webhook's secret":
        return request == "POST /v1/webhooks" or request.endswith("/rotate")
    return what == "path of a webhook" and ("/v1/webhooks" in request or request == "GET /v1/audit")


def test_secrets_stand_where_they_belong_and_nowhere_else(planted: Planted) -> None:
    with planted.service.http() as http:
        study, held = good_requests(planted, http)
        keys_and_webhooks(planted, http)
        bad_requests(planted, http, study, held)
        broken_requests(planted, http, study, held)
        requests_without_a_database(planted, http, study)
    assert {answer.status_code for _, answer in planted.answers} >= {200, 201, 401, 409, 422, 500, 503}
    leaks = [*in_answers(planted), *in_logs(planted), *in_database(planted)]
    assert leaks == []


def found_in(text: str, planted: Planted) -> Iterator[str]:
    for what, values in planted.secrets().items():
        if any(value in text for value in values):
            yield what


def in_answers(planted: Planted) -> Iterator[str]:
    for request, answer in planted.answers:
        text = answer.text + json.dumps(dict(answer.headers))
        for what in found_in(text, planted):
            if not where_it_may_be_answered(what, request, answer):
                yield f"{what} in the answer {answer.status_code} to {request}: {answer.text[:300]}"


def in_logs(planted: Planted) -> Iterator[str]:
    """Everything the processes wrote, its standard output included, and what they left in their folder."""
    texts = {
        path: path.read_text(errors="replace") for path in planted.service.home.rglob("*") if path.is_file()
    }
    log = texts[planted.service.home / "service.log"]
    assert "Traceback" in log, "the broken requests should have left their reason"
    assert "DEBUG" in log or '"debug"' in log
    for path, text in texts.items():
        # what is kept for the local user alone
        if path.name in ("credentials.json", "secret_key"):
            assert path.stat().st_mode & 0o077 == 0
            continue
        for what in found_in(text, planted):
            (value, *_) = [v for v in planted.secrets()[what] if v in text]
            place = text.index(value)
            yield f"{what} in {path.name}: {text[max(place - 500, 0) : place + 100]}"


def in_database(planted: Planted) -> Iterator[str]:
    services = build_services(planted.settings)
    held: dict[str, int] = {}
    leaks = set()
    with services.transactions(read_only=True) as (connection, _):
        for table in Table.metadata.sorted_tables:
            for row in connection.execute(select(table)):
                for column, value in row._mapping.items():
                    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
                    place = f"{table.name}.{column}"
                    for what in found_in(text, planted):
                        held[what] = held.get(what, 0) + 1
                        if place not in PLACES.get(what, set()):
                            leaks.add(f"{what} in {place}")
    services.close()
    assert set(held) == set(PLACES), "a secret that should be stored was not found: the search is blind"
    yield from sorted(leaks)


UNREACHABLE = "postgresql+psycopg://bo:{}@127.0.0.1:1/bo"


@pytest.mark.parametrize(
    "url",
    [
        UNREACHABLE.format("{tail}%40%3A"),
        UNREACHABLE.format("p:{tail}"),
        UNREACHABLE.format("p@{tail}"),
        UNREACHABLE.format("p/{tail}#%"),
        "postgresql+psycopg://bo:{tail}@127.0.0.1:port/bo",
        "postgresql:/bo:{tail}@127.0.0.1",
        "nothing+known://bo:{tail}@127.0.0.1/bo",
        "{tail}",
    ],
)
@pytest.mark.parametrize("command", [("db", "current"), ("up", "--port", "0")])
def test_a_command_that_cannot_reach_the_database_tells_no_password(
    tmp_path: Path, url: str, command: tuple[str, ...]
) -> None:
    out = run(tmp_path, *command, BO_DATABASE_URL=url.replace("{tail}", tail := canary("tail")))
    assert tail not in out
    assert out, "it should have said what is wrong"


def run(home: Path, *command: str, seconds: float = 60, **environment: str) -> str:
    """What a command says, stopped after a while; it must not end well."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bo_service", *command],
        env=os.environ | {"BO_HOME": str(home), "BO_LOG_LEVEL": "debug", "COLUMNS": "400"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        out, _ = process.communicate(timeout=seconds)
        assert process.returncode != 0
    except subprocess.TimeoutExpired:
        process.terminate()
        out, _ = process.communicate(timeout=60)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("form", ["text", "json"])
def test_processes_without_their_servers_tell_no_password(tmp_path: Path, form: str) -> None:
    password, broker, key = canary("password"), canary("broker"), f"bo_{canary('key')}"
    environment = {
        "BO_DATABASE_URL": UNREACHABLE.format(password + quote(AWKWARD, safe="")),
        "BO_BROKER_URL": f"redis://user:{broker}{quote(AWKWARD, safe='')}@127.0.0.1:1/0",
        "BO_COMPUTE": "external",
        "BO_LOG_FORMAT": form,
        "BO_URL": "http://127.0.0.1:1",
        "BO_API_KEY": key,
    }
    commands = [("doctor",), ("relay",), ("compute", "--queues", "cpu"), ("status",), ("study", "list")]
    with ThreadPoolExecutor(len(commands)) as pool:
        told = dict(
            zip(
                commands,
                pool.map(lambda command: run(tmp_path, *command, seconds=20, **environment), commands),
                strict=True,
            )
        )
    for command, out in told.items():
        assert out, command
        for secret in (password, broker, key):
            assert secret not in out, f"{command}: {out[max(out.index(secret) - 500, 0) :][:700]}"


def test_settings_show_no_secret(tmp_path: Path) -> None:
    secret = canary("settings")
    shown = Settings(
        home=tmp_path,
        database_url=f"postgresql+psycopg://bo:{secret}@db/bo",
        broker_url=f"redis://:{secret}@redis/0",
        secret_key=secret * 3,
    )
    assert secret not in repr(shown) + str(shown)
    with pytest.raises(ValidationError) as refused:
        Settings(home=tmp_path, database_url=f"postgresql+psycopg://bo:p@{secret}@db/bo")
    assert secret not in str(refused.value)
    assert "%40" in str(refused.value)
