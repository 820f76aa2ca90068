"""Every route refuses something, with a status, a code and words that help."""

from __future__ import annotations

import socket
import uuid
from typing import Any

import httpx2
import pytest

NOBODY = "00000000-0000-7000-8000-000000000000"


@pytest.fixture
def study(http: httpx2.Client, make_spec) -> str:
    return http.post("/v1/studies", json=make_spec()).json()["id"]


@pytest.fixture
def trial(http: httpx2.Client, study: str) -> dict[str, Any]:
    reply = http.post(f"/v1/studies/{study}/trials", json={"worker": "w", "wait_seconds": 20})
    return reply.json()["trials"][0]


def refused(answer: httpx2.Response, status: int, code: str, words: str = "") -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == code
    assert (problem["status"], problem["type"]) == (status, f"urn:bo-service:error:{code}")
    told = problem["detail"] + str(problem.get("hint", "")) + str(problem.get("problems", ""))
    assert words in told, told
    return problem


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/v1/studies/{NOBODY}"),
        ("GET", "/v1/studies/no such study"),
        ("PATCH", f"/v1/studies/{NOBODY}"),
        ("POST", f"/v1/studies/{NOBODY}/pause"),
        ("POST", f"/v1/studies/{NOBODY}/resume"),
        ("POST", f"/v1/studies/{NOBODY}/stop"),
        ("POST", f"/v1/studies/{NOBODY}/archive"),
        ("GET", f"/v1/studies/{NOBODY}/best"),
        ("GET", f"/v1/studies/{NOBODY}/pareto"),
        ("GET", f"/v1/studies/{NOBODY}/trials"),
        ("GET", f"/v1/studies/{NOBODY}/suggestions"),
        ("GET", f"/v1/studies/{NOBODY}/fits"),
        ("GET", f"/v1/studies/{NOBODY}/export"),
        ("GET", f"/v1/studies/{NOBODY}/events"),
        ("GET", f"/v1/trials/{NOBODY}"),
        ("POST", f"/v1/trials/{NOBODY}/abandon"),
        ("POST", f"/v1/trials/{NOBODY}/cancel"),
        ("GET", f"/v1/suggestions/{NOBODY}"),
        ("DELETE", f"/v1/suggestions/{NOBODY}"),
        ("GET", "/v1/surrogates/oracle"),
        ("DELETE", f"/v1/keys/{NOBODY}"),
        ("GET", f"/v1/webhooks/{NOBODY}"),
        ("DELETE", f"/v1/webhooks/{NOBODY}"),
        ("POST", f"/v1/webhooks/{NOBODY}/rotate"),
        ("POST", f"/v1/webhooks/{NOBODY}/enable"),
        ("POST", f"/v1/webhooks/{NOBODY}/test"),
        ("GET", f"/v1/webhooks/{NOBODY}/deliveries"),
        ("POST", f"/v1/webhooks/{NOBODY}/deliveries/{NOBODY}/retry"),
        ("GET", "/v1/nowhere"),
    ],
)
def test_what_does_not_exist_is_not_found(http: httpx2.Client, method: str, path: str) -> None:
    refused(http.request(method, path, json={} if method in ("POST", "PATCH") else None), 404, "not_found")


@pytest.mark.parametrize("verb", ["heartbeat", "observations", "complete", "fail", "infeasible", "release"])
def test_a_wrong_lease_is_lost(http: httpx2.Client, trial, verb: str) -> None:
    body = {"lease": "wrong"} | {
        "observations": {"step": 1, "metrics": {"loss": 1}},
        "complete": {"metrics": {"loss": 1}},
        "fail": {"reason": "r"},
    }.get(verb, {})
    method = "PUT" if verb == "heartbeat" else "POST"
    refused(
        http.request(method, f"/v1/trials/{trial['id']}/{verb}", json=body),
        409,
        "lease_lost",
        "drop this trial",
    )


@pytest.mark.parametrize(
    ("verb", "body", "words"),
    [
        ("complete", {"metrics": {}}, "metrics"),
        ("complete", {"metrics": {"accuracy": 1}}, "is not a metric of this study"),
        ("complete", {"metrics": {"loss": "good"}}, "give a number"),
        ("complete", {"metrics": {"loss": True}}, "give a number"),
        ("complete", {"metrics": {"loss": {"value": 1, "sem": -1}}}, "is not a standard error"),
        ("complete", {"metrics": {"loss": 1}, "cost": -1}, "cost"),
        ("observations", {"step": -1, "metrics": {"loss": 1}}, "step"),
        ("observations", {"step": 1.5, "metrics": {"loss": 1}}, "step"),
        ("observations", {"step": 1, "metrics": {"nope": 1}}, "is not a metric"),
        ("fail", {}, "reason"),
        ("fail", {"reason": "r", "exit": "bored"}, "exit"),
        ("release", {"why": "r"}, "why"),
    ],
)
def test_a_bad_report_names_its_field_and_leaves_the_trial_running(http, trial, verb, body, words) -> None:
    answer = http.post(f"/v1/trials/{trial['id']}/{verb}", json={"lease": trial["lease"]} | body)
    refused(answer, 422, "validation_failed", words)
    assert http.get(f"/v1/trials/{trial['id']}").json()["state"] == "RUNNING"


def test_intermediate_values_that_are_not_finite_are_refused(http: httpx2.Client, trial) -> None:
    body = {"lease": trial["lease"], "step": 1, "metrics": {"loss": "nan"}}
    refused(
        http.post(f"/v1/trials/{trial['id']}/observations", json=body), 422, "validation_failed", "not finite"
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "worker"),
        ({"worker": ""}, "worker"),
        ({"worker": "w", "count": 0}, "count"),
        ({"worker": "w", "count": 101}, "count"),
        ({"worker": "w", "wait_seconds": -1}, "wait_seconds"),
        ({"worker": "w", "lease_seconds": 0}, "lease_seconds"),
        ({"worker": "w", "fixed": {"z": 1}}, "fixed.z"),
        ({"worker": "w", "fixed": {"k": 99}}, "99 is outside [1, 8]"),
        ({"worker": "w", "push": "p" * 37}, "push"),
        ({"worker": "w", "push": "p", "count": 2}, "push"),
        ({"worker": "w", "push": "p", "fixed": {"k": 1}}, "push"),
    ],
)
def test_a_bad_claim_names_its_field(http: httpx2.Client, study: str, body, words: str) -> None:
    refused(http.post(f"/v1/studies/{study}/trials", json=body), 422, "validation_failed", words)


@pytest.mark.parametrize("route", ["suggestions", "trials/attach"])
@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"x": 0.5}, "parameters.k"),
        ({"x": 2, "k": 1}, "2 is outside [0, 1]"),
        ({"x": "0.5", "k": 1}, "not a finite number"),
        ({"x": 0.5, "k": 1.5}, "not a whole number"),
        ({"x": 0.5, "k": 1, "z": 1}, "is not a parameter of this study"),
    ],
)
def test_a_bad_configuration_names_its_parameter(
    http: httpx2.Client, study: str, route, parameters, words
) -> None:
    body = {"parameters": parameters} | ({"metrics": {"loss": 1}} if route == "trials/attach" else {})
    refused(http.post(f"/v1/studies/{study}/{route}", json=body), 422, "validation_failed", words)


def test_an_attached_trial_needs_a_result(http: httpx2.Client, study: str) -> None:
    url = f"/v1/studies/{study}/trials/attach"
    refused(http.post(url, json={"parameters": {"x": 0.5, "k": 1}}), 422, "validation_failed", "metrics.loss")
    body = {"parameters": {"x": 0.5, "k": 1}, "state": "RUNNING"}
    refused(http.post(url, json=body), 422, "validation_failed", "RUNNING is not a result")


@pytest.mark.parametrize(
    ("content", "media", "words"),
    [
        ("x,k,loss\n", "application/xml", "is not read"),
        ("x,k\n0.1,1\n", "text/csv", "header.loss"),
        ("x,k,loss,colour\n0.1,1,1,red\n", "text/csv", "header.colour"),
        ("x,k,loss\n0.1,1,1,9\n", "text/csv", "more cells than the header"),
        (
            '{"parameters": {"x": 0.1, "k": 1}, "metrics": {"loss": 1}}\nnonsense\n',
            "application/x-ndjson",
            "rows.2",
        ),
        ("[1]\n", "application/x-ndjson", "is not a JSON object"),
        (b"\xff\xfe\x00", "text/csv", "is not UTF-8"),
    ],
)
def test_a_bad_import_changes_nothing(
    http: httpx2.Client, study: str, content, media: str, words: str
) -> None:
    url = f"/v1/studies/{study}/trials/import"
    refused(http.post(url, content=content, headers={"Content-Type": media}), 422, "validation_failed", words)
    assert http.get(f"/v1/studies/{study}").json()["n_trials"] == 0


@pytest.mark.parametrize(
    ("query", "words"),
    [("limit=0", "limit"), ("limit=5000", "limit"), ("state=DONE", "state"), ("cursor=abc", "cursor of this list"),
     ("updated_since=yesterday", "updated_since"), ("order=random", "order")],
)  # fmt: skip
def test_a_bad_query_names_its_parameter(http: httpx2.Client, study: str, query: str, words: str) -> None:
    refused(http.get(f"/v1/studies/{study}/trials?{query}"), 422, "validation_failed", words)


def test_a_bad_event_id_is_refused(http: httpx2.Client, study: str) -> None:
    answer = http.get(f"/v1/studies/{study}/events", headers={"Last-Event-ID": "abc"})
    refused(answer, 422, "validation_failed", "Last-Event-ID")


@pytest.mark.parametrize(
    ("changes", "status", "code", "words"),
    [
        ({"metrics": []}, 409, "meaning_changed", "branch"),
        ({"seed": 3}, 409, "meaning_changed", "seed"),
        ({"colour": "red"}, 422, "validation_failed", "is not an edit"),
        ({"widen": {"z": {"high": 3}}}, 422, "validation_failed", "widen.z"),
        ({"widen": {"x": {"step": 3}}}, 422, "validation_failed", "widens by: low, high"),
        ({"widen": {"x": {"high": 0.5}}}, 409, "meaning_changed", "would leave out values"),
        ({"stopping": {"max_trials": -1}}, 422, "validation_failed", "stopping.max_trials"),
        ({"surrogate": {"name": "oracle"}}, 422, "validation_failed", "'oracle' is not installed"),
        (
            {"surrogate": {"name": "gp", "options": {"noise": "loud"}}},
            422,
            "validation_failed",
            "options.noise",
        ),
    ],
)
def test_a_bad_edit_changes_nothing(http: httpx2.Client, study: str, changes, status, code, words) -> None:
    refused(http.patch(f"/v1/studies/{study}", json=changes), status, code, words)
    assert http.get(f"/v1/studies/{study}").json()["spec_version"] == 1


def test_bad_studies_and_branches(http: httpx2.Client, study: str, make_spec) -> None:
    spec = make_spec()
    assert http.post("/v1/studies", json=spec).status_code == 201
    refused(http.post("/v1/studies", json=spec), 409, "name_taken", "choose another name")
    empty = make_spec(
        parameters=[{"type": "float", "name": n, "low": 0, "high": 1} for n in "ab"],
        constraints=["a + b >= 1.5", "a <= 0.7", "b <= 0.7"],
    )
    refused(
        http.post("/v1/studies", json=empty), 422, "validation_failed", "no values of a, b meet all of them"
    )
    refused(http.post("/v1/studies", json={"name": "x"}), 422, "validation_failed", "parameters")
    answer = http.post("/v1/studies", content="{", headers={"Content-Type": "application/json"})
    refused(answer, 422, "validation_failed", "JSON")
    branch = {"name": spec["name"], "changes": {}}
    refused(http.post(f"/v1/studies/{study}/branch", json=branch), 409, "name_taken")
    branch = {"name": "other", "changes": {"parameters": []}}
    refused(
        http.post(f"/v1/studies/{study}/branch", json=branch), 422, "validation_failed", "changes.parameters"
    )


def test_a_service_without_broker_pushes_nothing(http: httpx2.Client, study: str, make_spec) -> None:
    push = {"push": {"objective": "project.train:train", "slots": 2}}
    answers = (
        http.post("/v1/studies", json=make_spec(**push)),
        http.patch(f"/v1/studies/{study}", json=push),
        http.post(f"/v1/studies/{study}/branch", json={"name": "never", "changes": push}),
    )
    for answer in answers:
        problem = refused(answer, 422, "validation_failed", "BO_COMPUTE=external")
        assert problem["problems"][0]["field"] in ("push", "changes.push")
    assert http.patch(f"/v1/studies/{study}", json={"push": None}).status_code == 200


def test_a_push_that_was_never_announced_brings_nothing(http: httpx2.Client, study: str) -> None:
    body = {"worker": "w", "push": NOBODY, "wait_seconds": 20}
    answer = http.post(f"/v1/studies/{study}/trials", json=body)
    assert (answer.status_code, answer.json()["trials"], answer.json()["reason"]) == (200, [], "push_spent")


def test_a_failed_branch_leaves_no_study_behind(http: httpx2.Client, study: str, make_spec) -> None:
    name = make_spec()["name"] + "-half"
    changes = {"metrics": [{"name": "loss", "goal": "track"}]}
    refused(
        http.post(f"/v1/studies/{study}/branch", json={"name": name, "changes": changes}),
        422,
        "validation_failed",
    )
    refused(http.get(f"/v1/studies/{name}"), 404, "not_found")


def test_idempotency_keys_have_a_length(http: httpx2.Client, make_spec) -> None:
    answer = http.post("/v1/studies", json=make_spec(), headers={"Idempotency-Key": "k" * 300})
    refused(answer, 422, "validation_failed", "Idempotency-Key")


def test_a_body_that_is_too_large_is_refused(start_service, make_spec) -> None:
    with start_service(BO_MAX_BODY_MEGABYTES="0.01", BO_MAX_IMPORT_MEGABYTES="0.02").http() as http:
        answer = http.post("/v1/studies", json={"name": "x" * 20_000})
        refused(answer, 413, "payload_too_large", "BO_MAX_BODY_MEGABYTES")
        # without a declared length the body is counted as it comes
        answer = http.post("/v1/studies", content=(b"x" * 1000 for _ in range(30)))
        refused(answer, 413, "payload_too_large", "BO_MAX_BODY_MEGABYTES")
        study = http.post("/v1/studies", json=make_spec()).json()["id"]
        rows = "x,k,loss\n" + "0.5,1,0.25\n" * 1500
        at, headers = f"/v1/studies/{study}/trials/import", {"Content-Type": "text/csv"}
        assert http.post(at, content=rows, headers=headers).json()["imported"] == 1500
        refused(
            http.post(at, content=2 * rows, headers=headers),
            413,
            "payload_too_large",
            "BO_MAX_IMPORT_MEGABYTES",
        )


def test_a_body_without_a_key_is_not_read(service, http: httpx2.Client, study: str) -> None:
    """Not even up to its limit: the answer comes while the body is still to be sent."""
    for path in ("/v1/studies", f"/v1/studies/{study}/trials/import"):
        with socket.create_connection((http.base_url.host, http.base_url.port), timeout=10) as line:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            line.sendall((head + "Content-Length: 900000\r\n\r\n[[").encode())
            answer = line.recv(65536).decode()
        assert answer.startswith("HTTP/1.1 401"), answer
        assert "application/problem+json" in answer
        assert "www-authenticate: Bearer" in answer
    # by default, whoever has a key may send a megabyte
    refused(http.post("/v1/studies", content=b"[" * 1_100_000), 413, "payload_too_large", "1000000 bytes")


def test_keys_are_needed_known_and_wide_enough(service, http: httpx2.Client, study: str) -> None:
    refused(httpx2.get(f"{service.url}/v1/studies"), 401, "unauthorized", "Authorization: Bearer")
    with service.http("bo_wrong") as stranger:
        refused(stranger.get("/v1/studies"), 401, "unauthorized", "expired or revoked")
    keys = {
        scope: http.post("/v1/keys", json={"name": scope, "scope": scope}).json()["key"]
        for scope in ("viewer", "worker", "editor")
    }
    with service.http(keys["viewer"]) as viewer:
        assert viewer.get(f"/v1/studies/{study}").status_code == 200
        answer = viewer.post(f"/v1/studies/{study}/trials", json={"worker": "w"})
        refused(answer, 403, "forbidden", "use a key of scope worker")
    with service.http(keys["worker"]) as worker:
        assert (
            worker.post(f"/v1/studies/{study}/trials", json={"worker": "w", "wait_seconds": 9}).status_code
            == 200
        )
        refused(worker.post(f"/v1/studies/{study}/pause"), 403, "forbidden", "editor")
    with service.http(keys["editor"]) as editor:
        assert editor.post(f"/v1/studies/{study}/pause").status_code == 200
        refused(editor.get("/v1/keys"), 403, "forbidden", "admin")
    refused(http.post("/v1/keys", json={"name": "x", "scope": "god"}), 422, "validation_failed", "scope")


def test_a_key_is_made_once_and_its_text_is_not_repeated(service, http: httpx2.Client) -> None:
    body, headers = {"name": "once", "scope": "viewer"}, {"Idempotency-Key": f"key-{uuid.uuid4()}"}
    first = http.post("/v1/keys", json=body, headers=headers).json()
    again = http.post("/v1/keys", json=body, headers=headers).json()
    assert first["key"].startswith("bo_")
    assert again == first | {"key": None}
    assert sum(key["id"] == first["id"] for key in http.get("/v1/keys").json()["items"]) == 1


def test_a_revoked_key_ends(service, http: httpx2.Client) -> None:
    made = http.post("/v1/keys", json={"name": "short", "scope": "viewer"}).json()
    with service.http(made["key"]) as viewer:
        assert viewer.get("/v1/info").json()["key"] == "short"
        assert http.delete(f"/v1/keys/{made['id']}").json()["revoked_at"] is not None
        refused(viewer.get("/v1/info"), 401, "unauthorized")


def test_keys_and_the_audit_log_refuse_what_makes_no_sense(http: httpx2.Client) -> None:
    refused(http.post("/v1/keys/00000000-0000-7000-8000-000000000000/rotate"), 404, "not_found")
    made = http.post("/v1/keys", json={"name": "r", "scope": "viewer"}).json()
    body = {"grace_seconds": -1}
    refused(http.post(f"/v1/keys/{made['id']}/rotate", json=body), 422, "validation_failed", "grace_seconds")
    body = {"name": "k", "scope": "viewer", "expires_in_seconds": 0}
    refused(http.post("/v1/keys", json=body), 422, "validation_failed", "expires_in_seconds")
    refused(http.get("/v1/audit", params={"cursor": "bm8"}), 422, "validation_failed", "cursor")
    refused(http.get("/v1/audit", params={"limit": 0}), 422, "validation_failed", "limit")


def test_a_project_does_not_see_anothers_studies(service, http: httpx2.Client, study: str, trial) -> None:
    made = http.post(
        "/v1/keys", json={"name": "n", "scope": "admin", "project": f"p{uuid.uuid4().hex[:8]}"}
    ).json()
    with service.http(made["key"]) as neighbour:
        refused(neighbour.get(f"/v1/studies/{study}"), 404, "not_found")
        refused(neighbour.get(f"/v1/trials/{trial['id']}"), 404, "not_found")
        body = {"lease": trial["lease"], "metrics": {"loss": 1}}
        refused(neighbour.post(f"/v1/trials/{trial['id']}/complete", json=body), 404, "not_found")
        refused(neighbour.get(f"/v1/suggestions/{trial['suggestion_id']}"), 404, "not_found")
        assert neighbour.get("/v1/studies").json()["items"] == []


def test_every_route_is_refused_somewhere_in_these_tests(service) -> None:
    """A route that nobody tried to misuse would show up here."""
    import inspect
    import re
    import sys

    source = inspect.getsource(sys.modules[__name__])
    paths = httpx2.get(f"{service.url}/openapi.json").json()["paths"]
    words = {re.sub(r"\{.*?\}", "", path).rstrip("/").rsplit("/", 1)[-1] for path in paths}
    untried = {w for w in words if w and w not in source} - {"healthz", "readyz"}
    assert untried == set()
