"""Schemathesis walks the whole OpenAPI document against a running service with keys on, on both databases.

Each request has a time limit, so nothing hangs unseen. Left out on purpose: `positive_data_acceptance`, since a
configuration that fits the schema may still lie outside its study, and `use_after_free`, since DELETE ends a key or a
suggestion and keeps its record.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.conftest import Service

SECONDS = 20
"""No request may take longer, however busy the machine is."""

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    negative_data_rejection,
]
CLOSING = ("archive_study", "stop_study", "pause_study")
"""Would take the study away from the routes after them: they get one of their own."""

HARD = ("abandon_trial",)
QUIET = list(HealthCheck)


def quiet(n: int, *, steps: int = 8) -> settings:
    """The same examples every time, so that a failure is a change of ours."""
    return settings(
        max_examples=n,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=QUIET,
    )


@dataclass
class Target:
    """A service, its document, and things in it that generated requests may name."""

    service: Service
    schema: Any
    real: dict[str, str]

    @property
    def call(self) -> dict[str, Any]:
        return {"timeout": SECONDS}


def furnished(http: httpx2.Client, make_spec, name: str) -> dict[str, str]:
    """A study with trials in many states; the ids to put into paths."""
    spec = make_spec(
        name=name,
        metrics=[{"name": "loss", "goal": "minimize"}, {"name": "size", "goal": "constraint", "upper": 1}],
        retry={"max_attempts": 100, "retry_failures": True, "lease_seconds": 3600},
    )
    spec["parameters"] += [
        {"type": "mixture", "name": "m", "components": [{"name": "a"}, {"name": "b"}]},
        {"type": "categorical", "name": "c", "choices": ["a", 1, True], "active_if": {"parent": "k", "values": [1]}},
    ]  # fmt: skip
    study = http.post("/v1/studies", json=spec).json()["id"]
    while True:
        claim = {"worker": "w", "count": 4, "wait_seconds": 1}
        trials = http.post(f"/v1/studies/{study}/trials", json=claim).json()["trials"]
        if len(trials) == 4:
            break
    held, done, bad, hopeless = trials
    for trial, verb, body in [
        (held, "observations", {"step": 1, "metrics": {"loss": 2}}),
        (done, "complete", {"metrics": {"loss": 1, "size": {"value": 0, "sem": 0.1}}, "cost": 2.5}),
        (bad, "fail", {"reason": "r", "retry": False}),
        (hopeless, "infeasible", {"reason": "r"}),
    ]:
        url = f"/v1/trials/{trial['id']}/{verb}"
        assert http.post(url, json=body | {"lease": trial["lease"]}).status_code == 200
    late = {"lease": "late", "metrics": {"loss": 3}}
    assert http.post(f"/v1/trials/{done['id']}/complete", json=late).status_code == 409
    prepared = http.get(f"/v1/studies/{study}/suggestions?state=PREPARED").json()["items"]
    return {"study": study, "trial": held["id"], "suggestion": prepared[0]["id"], "name": "gp"}


@pytest.fixture(scope="module")
def target(running: Service) -> Target:
    from tests.conftest import spec_json

    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json", timeout=SECONDS)
    # said here and not at the call, so that no request is made whose only fault is a key that is sent after all
    schema.config.update(headers={"Authorization": f"Bearer {running.key}"})
    with running.http() as http:
        real = furnished(http, spec_json, "fuzzed")
        real["closing"] = furnished(http, spec_json, "closing")["study"]
        real["abandoned"] = furnished(http, spec_json, "abandoned")["trial"]
    return Target(running, schema, real)


def operations(target: Target) -> Iterator[tuple[str, Any]]:
    for result in target.schema.get_all_operations():
        operation = result.ok()
        yield operation.definition.raw["operationId"], operation


def paths_for(name: str, operation: Any, real: dict[str, str]) -> dict[str, str]:
    """Real ids for the places in a route; a key's place gets none, since revoking ours would end the run."""
    places = {part[1:-1] for part in operation.path.split("/") if part.startswith("{")}
    found = {place: real[place] for place in places if place in real}
    if name in CLOSING:
        found["study"] = real["closing"]
    if name in HARD:
        found["trial"] = real["abandoned"]
    return found


def bounded(case: Any, name: str) -> Any:
    """A stream that would follow for ever ends with what is there."""
    if name == "stream_events":
        case.query = {**(case.query or {}), "follow": "false"}
    return case


@contextmanager
def session() -> Iterator[requests.Session]:
    with requests.Session() as found:
        yield found


def fuzz(target: Target, n: int) -> None:
    """Each operation with generated requests: good and bad ones, on real ids and on invented ones."""
    with session() as connection:
        for name, operation in operations(target):
            paths = paths_for(name, operation, target.real)
            kinds = [
                operation.as_strategy(mode, path_parameters=known or None)
                for mode in GenerationMode
                for known in ({}, paths)
                if known or not paths or mode is GenerationMode.POSITIVE
            ]

            n_examples = math.ceil(n / 2) if operation.method == "get" else n
            attack(name, st.one_of(kinds), quiet(n_examples), connection, target.call)


def attack(name: str, cases: Any, how: settings, connection: requests.Session, call: dict[str, Any]) -> None:
    """One operation's generated requests, each answered in time and as the document says."""

    @how
    @given(case=cases)
    def check(case: Any) -> None:
        bounded(case, name).call_and_validate(session=connection, checks=CHECKS, **call)

    try:
        check()
    except BaseException as error:
        error.add_note(f"operation {name}")
        raise


def walk(target: Target, n: int, *, steps: int) -> None:
    """Chains of requests along the document's links: what one answer names, the next request uses."""

    found: list[BaseException] = []

    @contextmanager
    def kept() -> Iterator[None]:
        # what happens once does not happen in Hypothesis's replay, which then speaks of flakiness alone
        try:
            yield
        except BaseException as error:
            found.append(error)
            raise

    class Walk(target.schema.as_state_machine()):
        def before_call(self, case: Any) -> None:
            bounded(case, case.operation.definition.raw["operationId"])

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            del case
            return target.call

        def call(self, case: Any, **given: Any) -> Any:
            with kept():
                return super().call(case, **given)

        def validate_response(self, response: Any, case: Any, **_: Any) -> None:
            with kept():
                case.validate_response(response, checks=CHECKS)

    for seed in range(n):
        # a scenario at a time: Hypothesis compares them, and answers depend on the scenarios before
        Walk._hypothesis_internal_use_seed = seed
        with suppress(Flaky):
            Walk.run(settings=settings(quiet(2, steps=steps), derandomize=False))
        if found:
            raise found[0]


def still_sound(target: Target) -> None:
    """The fuzzed service answers, and no rule of its database is broken."""
    from bo_service.bootstrap import broken_invariants, build_services
    from bo_service.settings import Settings

    with target.service.http() as http:
        assert http.get("/readyz").json()["status"] == "ok"
    url = target.service.environment.get("BO_DATABASE_URL", "")
    services = build_services(Settings(home=target.service.home, database_url=url))
    broken = broken_invariants(services)
    services.close()
    assert broken == []
    log = (target.service.home / "service.log").read_text()
    assert "Traceback" not in log, log[log.index("Traceback") :][:4000]


def test_every_route_keeps_its_word(target: Target) -> None:
    fuzz(target, 3)
    walk(target, 2, steps=6)
    still_sound(target)


def test_a_request_that_hangs_once_fails_the_walk(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    call = schemathesis.Case.call
    n_calls = 0

    def hang_once(case: Any, *given: Any, **named: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 3:
            raise requests.ReadTimeout("no answer in time")
        return call(case, *given, **named)

    monkeypatch.setattr(schemathesis.Case, "call", hang_once)
    with pytest.raises(requests.ReadTimeout):
        walk(target, 1, steps=6)
    assert n_calls > 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_route_keeps_its_word_for_long(target: Target) -> None:
    fuzz(target, 15)
    walk(target, 12, steps=12)
    still_sound(target)


def test_every_route_is_described_in_full(target: Target) -> None:
    """An operation id of our own, a schema for every answer, problem documents for refusals."""
    # not target.schema: Schemathesis adds links to its own copy
    raw = httpx2.get(f"{target.service.url}/openapi.json").json()
    ids = []
    for path, item in raw["paths"].items():
        for method, operation in item.items():
            where = f"{method.upper()} {path}"
            ids.append(operation["operationId"])
            assert not operation["operationId"].endswith(f"_{method}"), f"{where}: generated, use says()"
            assert operation.get("summary"), where
            answers = operation["responses"]
            assert any(status.startswith("2") for status in answers), where
            for status, answer in answers.items():
                for media, content in answer["content"].items():
                    assert content["schema"], f"{where} {status} {media}"
                    if int(status) >= 400 and path != "/readyz":
                        assert media == "application/problem+json", f"{where} {status}"
            if "/v1/" in path:
                assert operation["security"], where
                assert {"401", "403", "429", "500", "503"} <= set(answers), where
            if "202" in answers:
                assert "Retry-After" in answers["202"]["headers"], where
    assert len(set(ids)) == len(ids)
    links = [
        link["operationId"]
        for item in raw["paths"].values()
        for operation in item.values()
        for answer in operation["responses"].values()
        for link in answer.get("links", {}).values()
    ]
    assert set(links) <= set(ids)
    assert len(links) > 20
