"""Every route of the OpenAPI document, under every scope, on one's own things and on another project's.

NEEDS is the whole policy. A route that stands in the document and not there fails the test, and so does one that is
gone.
"""

from __future__ import annotations

import json
import re
import secrets
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import jsonschema_rs
import pytest

from bo_service.bootstrap import build_services
from bo_service.domain.records import Scope
from bo_service.orchestrator.manage_keys import create_key
from bo_service.settings import Settings
from tests.conftest import Service, StartService, spec_json

NEEDS: dict[str, str | None] = {
    "GET /healthz": None,
    "GET /readyz": None,
    "GET /v1/info": "viewer",
    "GET /v1/surrogates": "viewer",
    "GET /v1/surrogates/{name}": "viewer",
    "GET /v1/studies": "viewer",
    "GET /v1/studies/{study}": "viewer",
    "GET /v1/studies/{study}/best": "viewer",
    "GET /v1/studies/{study}/pareto": "viewer",
    "GET /v1/studies/{study}/fits": "viewer",
    "GET /v1/studies/{study}/export": "viewer",
    "GET /v1/studies/{study}/events": "viewer",
    "GET /v1/studies/{study}/trials": "viewer",
    "GET /v1/studies/{study}/suggestions": "viewer",
    "GET /v1/trials/{trial}": "viewer",
    "GET /v1/suggestions/{suggestion}": "viewer",
    "POST /v1/studies/{study}/trials": "worker",
    "POST /v1/studies/{study}/trials/attach": "worker",
    "POST /v1/studies/{study}/suggestions": "worker",
    "PUT /v1/trials/{trial}/heartbeat": "worker",
    "POST /v1/trials/{trial}/observations": "worker",
    "POST /v1/trials/{trial}/complete": "worker",
    "POST /v1/trials/{trial}/fail": "worker",
    "POST /v1/trials/{trial}/infeasible": "worker",
    "POST /v1/trials/{trial}/release": "worker",
    "POST /v1/studies": "editor",
    "PATCH /v1/studies/{study}": "editor",
    "POST /v1/studies/{study}/branch": "editor",
    "POST /v1/studies/{study}/pause": "editor",
    "POST /v1/studies/{study}/resume": "editor",
    "POST /v1/studies/{study}/stop": "editor",
    "POST /v1/studies/{study}/archive": "editor",
    "POST /v1/studies/{study}/trials/import": "editor",
    "POST /v1/trials/{trial}/abandon": "editor",
    "POST /v1/trials/{trial}/cancel": "editor",
    "DELETE /v1/suggestions/{suggestion}": "editor",
    "GET /v1/webhooks": "viewer",
    "GET /v1/webhooks/{webhook}": "viewer",
    "GET /v1/webhooks/{webhook}/deliveries": "viewer",
    "POST /v1/webhooks": "editor",
    "DELETE /v1/webhooks/{webhook}": "editor",
    "POST /v1/webhooks/{webhook}/rotate": "editor",
    "POST /v1/webhooks/{webhook}/enable": "editor",
    "POST /v1/webhooks/{webhook}/test": "editor",
    "POST /v1/webhooks/{webhook}/deliveries/{delivery}/retry": "editor",
    "GET /metrics": "operator",
    "GET /v1/status": "operator",
    "GET /v1/audit": "admin",
    "GET /v1/keys": "admin",
    "POST /v1/keys": "admin",
    "POST /v1/keys/{key}/rotate": "admin",
    "DELETE /v1/keys/{key}": "admin",
}
"""Route -> the least scope that may use it. None needs no key; `operator` is any key of the project `default`."""

SCOPES = ("viewer", "worker", "editor", "admin")
"""Each includes the ones before it."""

RECEIVER = "http://127.0.0.1:9999/nobody-listens"

NEW = {"x": 0.25, "k": 3}


@dataclass
class Project:
    """A project with a key of every scope, a study, and fresh things in it for each request."""

    service: Service
    name: str
    keys: dict[str, str]
    study: str
    trials: list[dict[str, Any]] = field(default_factory=list)

    def http(self, scope: str = "admin") -> httpx2.Client:
        return self.service.http(self.keys[scope])

    def trial(self) -> dict[str, Any]:
        """A trial of ours, leased and not yet used."""
        if not self.trials:
            with self.http() as http:
                claim = {"worker": "w", "count": 20, "wait_seconds": 5, "reclaim": False}
                self.trials = http.post(f"/v1/studies/{self.study}/trials", json=claim).json()["trials"]
        return self.trials.pop()

    def new_study(self) -> str:
        with self.http() as http:
            return http.post("/v1/studies", json=spec_json(name=f"s-{secrets.token_hex(8)}")).json()["id"]

    def suggestion(self) -> str:
        with self.http() as http:
            url = f"/v1/studies/{self.study}/suggestions"
            return http.post(url, json={"parameters": NEW}).json()["id"]

    def webhook(self) -> str:
        with self.http() as http:
            return http.post("/v1/webhooks", json={"url": RECEIVER}).json()["id"]

    def delivery(self, webhook: str) -> str:
        with self.http() as http:
            return http.post(f"/v1/webhooks/{webhook}/test").json()["id"]

    def key(self) -> str:
        with self.http() as http:
            return http.post("/v1/keys", json={"name": "n", "scope": "viewer"}).json()["id"]


def settings_of(service: Service) -> Settings:
    return Settings(home=service.home, database_url=service.environment.get("BO_DATABASE_URL", ""))


def new_project(service: Service) -> Project:
    name = f"p-{secrets.token_hex(6)}"
    services = build_services(settings_of(service))
    keys = {
        scope: create_key(scope, Scope(scope), project=name, uow=services.uow)[1]
        for scope in (*SCOPES, "revoked")
        if scope != "revoked"
    }
    revoked, keys["revoked"] = create_key("revoked", Scope.ADMIN, project=name, uow=services.uow)
    services.close()
    with service.http(keys["admin"]) as http:
        assert http.delete(f"/v1/keys/{revoked.id}").status_code == 200
        study = http.post("/v1/studies", json=spec_json(parallelism=1000)).json()["id"]
    return Project(service, name, keys, study)


@pytest.fixture(scope="module")
def service(start_module_service: StartService) -> Service:
    """One that may call receivers on this machine."""
    return start_module_service(BO_WEBHOOK_ALLOW='["127.0.0.1"]')


@pytest.fixture
def http(service: Service) -> Iterator[httpx2.Client]:
    with service.http() as client:
        yield client


@pytest.fixture(scope="module")
def ours(service: Service) -> Project:
    return new_project(service)


@pytest.fixture(scope="module")
def theirs(service: Service) -> Project:
    return new_project(service)


@pytest.fixture(scope="module")
def document(service: Service) -> dict[str, Any]:
    return httpx2.get(f"{service.url}/openapi.json").json()


def routes(document: dict[str, Any]) -> Iterator[str]:
    for path, item in document["paths"].items():
        for method in item:
            yield f"{method.upper()} {path}"


BODIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "POST /v1/studies/{study}/trials": lambda _: {"worker": "another", "wait_seconds": 5},
    "POST /v1/studies/{study}/trials/attach": lambda _: {"parameters": NEW, "metrics": {"loss": 1}},
    "POST /v1/studies/{study}/suggestions": lambda _: {"parameters": NEW},
    "PUT /v1/trials/{trial}/heartbeat": lambda trial: {"lease": trial["lease"]},
    "POST /v1/trials/{trial}/observations": lambda trial: {
        "lease": trial["lease"], "step": 1, "metrics": {"loss": 1}
    },
    "POST /v1/trials/{trial}/complete": lambda trial: {"lease": trial["lease"], "metrics": {"loss": 1}},
    "POST /v1/trials/{trial}/fail": lambda trial: {"lease": trial["lease"], "reason": "r"},
    "POST /v1/trials/{trial}/infeasible": lambda trial: {"lease": trial["lease"]},
    "POST /v1/trials/{trial}/release": lambda trial: {"lease": trial["lease"]},
    "POST /v1/studies": lambda _: spec_json(name=f"s-{secrets.token_hex(8)}"),
    "PATCH /v1/studies/{study}": lambda _: {"metadata": {"note": secrets.token_hex(4)}},
    "POST /v1/studies/{study}/branch": lambda _: {"name": f"b-{secrets.token_hex(8)}"},
    "POST /v1/webhooks": lambda _: {"url": RECEIVER},
    "POST /v1/keys": lambda _: {"name": "n", "scope": "viewer"},
}  # fmt: skip
MOVES = ("pause", "resume", "stop", "archive")


def ask(http: httpx2.Client, route: str, owner: Project, **stranger: str) -> httpx2.Response:
    """A request that is right in every way, for a thing of `owner`; `stranger` puts other ids into the path."""
    method, path = route.split(" ")
    places: dict[str, Callable[[], Any]] = {
        "study": owner.new_study if path.endswith(MOVES) else lambda: owner.study,
        "trial": owner.trial,
        "suggestion": owner.suggestion,
        "key": owner.key,
        "webhook": owner.webhook,
        "delivery": lambda: owner.delivery(stranger.get("webhook") or path.split("/")[3]),
        "name": lambda: "sobol",
    }
    trial: dict[str, Any] = {"lease": "none"}
    for place in re.findall(r"{(\w+)}", path):
        value = stranger.get(place) or places[place]()
        if isinstance(value, dict):
            trial, value = value, value["id"]
        path = path.replace(f"{{{place}}}", value)
    options: dict[str, Any] = {"params": {"follow": "false"}} if path.endswith("/events") else {}
    if route.endswith("/import"):
        options |= {"content": "x,k,loss\n0.5,1,1\n", "headers": {"Content-Type": "text/csv"}}
    elif route in BODIES:
        options |= {"json": BODIES[route](trial)}
    return http.request(method, path, **options)


def test_every_route_has_its_least_scope_in_the_table(document: dict[str, Any]) -> None:
    assert set(routes(document)) == set(NEEDS)


def matches_its_description(document: dict[str, Any], route: str, answer: httpx2.Response) -> None:
    method, path = route.split(" ")
    described = document["paths"][path][method.lower()]["responses"][str(answer.status_code)]
    media = answer.headers["content-type"].partition(";")[0]
    schema = described["content"][media]["schema"]
    if "json" in media and "ndjson" not in media:
        whole = {"components": document["components"], **schema}
        jsonschema_rs.validator_for(whole, validate_formats=True).validate(answer.json())


@pytest.mark.parametrize("route", NEEDS)
def test_a_route_opens_to_its_least_scope_and_wider_ones_alone(
    service: Service, ours: Project, document: dict[str, Any], route: str
) -> None:
    needed = NEEDS[route]
    with httpx2.Client(base_url=service.url, timeout=60) as nobody:
        answer = ask(nobody, route, ours)
        assert answer.status_code == (200 if needed is None else 401), answer.text
        matches_its_description(document, route, answer)
    if needed is None:
        return
    for scope in SCOPES:
        with ours.http(scope) as http:
            answer = ask(http, route, ours)
        may = needed in SCOPES and SCOPES.index(scope) >= SCOPES.index(needed)
        assert answer.status_code in ((200, 201) if may else (403,)), f"{scope}: {answer.text}"
        matches_its_description(document, route, answer)
    with ours.http("revoked") as http:
        answer = ask(http, route, ours)
        assert answer.status_code == 401, answer.text
        assert answer.headers["www-authenticate"] == "Bearer"


def test_the_whole_service_is_shown_to_any_key_of_the_operators(
    service: Service, http: httpx2.Client, document: dict[str, Any]
) -> None:
    viewer = http.post("/v1/keys", json={"name": "n", "scope": "viewer"}).json()["key"]
    for route in (route for route, needed in NEEDS.items() if needed == "operator"):
        for key in (viewer, service.key):
            with service.http(key) as operator:
                answer = operator.get(route.split(" ")[1])
            assert answer.status_code == 200
            matches_its_description(document, route, answer)


OWNED = [route for route in NEEDS if re.search(r"{(study|trial|suggestion|key|webhook)}", route)]


@pytest.mark.parametrize("route", OWNED)
def test_another_projects_things_are_not_told_from_things_that_do_not_exist(
    ours: Project, theirs: Project, document: dict[str, Any], route: str
) -> None:
    with ours.http() as http:
        foreign = ask(http, route, theirs)
        place = re.findall(r"{(\w+)}", route)[0]
        nothing = str(uuid.uuid4())
        absent = ask(http, route, theirs, **{place: nothing, "delivery": nothing})
    assert foreign.status_code == absent.status_code == 404, foreign.text
    matches_its_description(document, route, foreign)
    known = foreign.request.url.path.split("/")[3]
    assert foreign.text.replace(known, nothing) == absent.text
    assert {k: v for k, v in foreign.headers.items() if k in ("content-type", "allow")} == {
        k: v for k, v in absent.headers.items() if k in ("content-type", "allow")
    }


@pytest.mark.parametrize("place", ["study", "trial", "suggestion", "key", "webhook"])
def test_a_thing_of_another_project_is_not_changed(ours: Project, theirs: Project, place: str) -> None:
    """Whatever route is tried with it, by whatever scope."""
    given = {
        "study": {"id": theirs.study},
        "trial": theirs.trial(),
        "suggestion": {"id": theirs.suggestion()},
        "key": {"id": theirs.key()},
        "webhook": {"id": theirs.webhook()},
    }[place]
    reads = {"study": "studies", "trial": "trials", "suggestion": "suggestions", "webhook": "webhooks"}

    def seen() -> Any:
        with theirs.http() as http:
            if place == "key":
                return [key for key in http.get("/v1/keys").json()["items"] if key["id"] == given["id"]]
            # a webhook's own messages go on meanwhile
            return http.get(f"/v1/{reads[place]}/{given['id']}").json() | {"failing_since": None}

    before = seen()
    for scope in SCOPES:
        with ours.http(scope) as http:
            for route in OWNED:
                if f"{{{place}}}" in route:
                    answer = ask(http, route, theirs, **{place: given["id"]})
                    assert answer.status_code in (403, 404), f"{route}: {answer.text}"
    assert seen() == before


def test_lists_show_ones_own_project_alone(ours: Project, theirs: Project) -> None:
    theirs.key()
    with ours.http() as http, theirs.http() as others:
        studies = {study["id"] for study in http.get("/v1/studies?limit=1000").json()["items"]}
        assert theirs.study not in studies
        mine = {key["id"] for key in http.get("/v1/keys").json()["items"]}
        assert not mine & {key["id"] for key in others.get("/v1/keys").json()["items"]}
        name = others.get(f"/v1/studies/{theirs.study}").json()["name"]
        assert http.get(f"/v1/studies/{name}").status_code == 404


def test_a_reply_kept_under_a_key_is_not_given_to_another_project(ours: Project, theirs: Project) -> None:
    headers, spec = {"Idempotency-Key": f"k-{secrets.token_hex(8)}"}, spec_json()
    with ours.http() as http, theirs.http() as others:
        made = http.post("/v1/studies", json=spec, headers=headers)
        other = others.post("/v1/studies", json=spec, headers=headers)
    assert (made.status_code, other.status_code) == (201, 201)
    assert "idempotency-replayed" not in other.headers
    assert made.json()["id"] != other.json()["id"]


def test_an_admin_makes_keys_for_its_own_project_alone(ours: Project, theirs: Project) -> None:
    with ours.http() as http:
        own = http.post("/v1/keys", json={"name": "n", "scope": "worker", "project": ours.name})
        assert own.json()["project"] == ours.name
        words = set()
        for project in (theirs.name, "default", f"new-{secrets.token_hex(4)}"):
            answer = http.post("/v1/keys", json={"name": "n", "scope": "worker", "project": project})
            assert answer.status_code == 403
            words.add(answer.text)
        assert len(words) == 1, "whether a project exists must not show"


def test_the_operator_makes_the_first_key_of_a_new_project_and_no_second(
    service: Service, http: httpx2.Client, theirs: Project
) -> None:
    project = f"new-{secrets.token_hex(4)}"
    body = {"name": "n", "scope": "admin", "project": project}
    headers = {"Idempotency-Key": f"k-{secrets.token_hex(8)}"}
    first = http.post("/v1/keys", json=body, headers=headers)
    assert first.json()["project"] == project
    with service.http(first.json()["key"]) as admin:
        assert admin.get("/v1/info").json()["project"] == project
        assert admin.post("/v1/keys", json={"name": "m", "scope": "worker"}).status_code == 201
    again = http.post("/v1/keys", json=body, headers=headers)
    assert (again.status_code, again.json()["key"]) == (201, None)
    for taken in (project, theirs.name):
        answer = http.post("/v1/keys", json=body | {"project": taken})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert http.post("/v1/keys", json=body | {"project": "default"}).status_code == 201


def test_a_wrong_key_of_the_same_beginning_is_refused(service: Service, ours: Project) -> None:
    """Keys are found by the hash of the whole text, so no part of one opens anything."""
    key = ours.keys["admin"]
    last = "A" if key[-1] != "A" else "B"
    wrong = [
        key[:-1],
        key + "A",
        key[:-1] + last,
        key[:10],
        key[:10] + "x" * (len(key) - 10),
        key.upper(),
    ]
    with ours.http() as http:
        (kept,) = [k for k in http.get("/v1/keys").json()["items"] if key.startswith(k["prefix"])]
    for text in [*wrong, kept["prefix"], kept["id"], f" {key[1:]}", "\xff" * 46]:
        header = {"Authorization": b"Bearer " + text.encode("latin-1")}
        answer = httpx2.get(f"{service.url}/v1/info", headers=header)
        assert answer.status_code == 401, text
    for header in (key, f"Basic {key}", f"Bearer{key}", f"Token {key}", "Bearer", ""):
        answer = httpx2.get(f"{service.url}/v1/info", headers={"Authorization": header.encode()})
        assert answer.status_code == 401, header
        assert key not in answer.text


def test_the_database_keeps_hashes_of_keys_alone(service: Service, ours: Project) -> None:
    services = build_services(settings_of(service))
    with services.uow(read_only=True) as store:
        stored = json.dumps([str(key) for key in store.records.keys(ours_id(store, ours))])
    services.close()
    for key in ours.keys.values():
        assert key not in stored
        assert key[:10] in stored


def ours_id(store: Any, project: Project) -> Any:
    from bo_service.orchestrator.manage_keys import hash_key

    found = store.records.key_by_hash(hash_key(project.keys["admin"]))
    assert found is not None
    return found.project_id
