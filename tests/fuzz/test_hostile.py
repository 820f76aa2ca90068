"""Bytes and values a schema cannot describe, on both databases: refused by name, never a 5xx, nothing half-written."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.conftest import Service

DEEP = "[" * 900 + "]" * 900
HUGE = 10**400


@pytest.fixture(scope="module")
def http(running: Service) -> Iterator[httpx2.Client]:
    with running.http() as client:
        yield client


@pytest.fixture(scope="module")
def study(http: httpx2.Client) -> str:
    spec = {
        "name": "hostile",
        "parameters": [
            {"type": "float", "name": "x", "low": 0, "high": 1, "step": 0.1},
            {"type": "int", "name": "k", "low": 1, "high": 8},
            {"type": "categorical", "name": "c", "choices": ["a", "b"]},
            {"type": "ordinal", "name": "o", "levels": [1, 2, 3]},
            {"type": "mixture", "name": "m", "components": [{"name": "a"}, {"name": "b"}]},
        ],
        "metrics": [{"name": "loss", "goal": "minimize"}],
        "surrogate": {"name": "sobol"},
        "seed": 1,
    }
    return http.post("/v1/studies", json=spec).json()["id"]


@pytest.fixture(scope="module")
def trial(http: httpx2.Client, study: str) -> dict[str, Any]:
    return claimed(http, study)


def claimed(http: httpx2.Client, study: str, worker: str = "w") -> dict[str, Any]:
    """A trial, as soon as there is one."""
    claim = {"worker": worker, "wait_seconds": 20, "lease_seconds": 3600}
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        answer = http.post(f"/v1/studies/{study}/trials", json=claim)
        assert answer.status_code in (200, 202), answer.text
        if answer.json()["trials"]:
            return answer.json()["trials"][0]
    raise TimeoutError(f"no trial of {study}")


def post(http: httpx2.Client, path: str, body: str | dict[str, Any], method: str = "POST") -> httpx2.Response:
    """JSON as it stands: `json.dumps` writes lone surrogates, NaN and huge integers without complaint."""
    content = body if isinstance(body, str) else json.dumps(body)
    return http.request(method, path, content=content, headers={"Content-Type": "application/json"})


def refused(answer: httpx2.Response, field: str | None = None, *, status: int = 422) -> None:
    assert answer.status_code == status, answer.text[:2000]
    assert answer.headers["content-type"] == "application/problem+json"
    problem = json.loads(answer.content.decode("utf-8"))
    fields = [found["field"] for found in problem.get("problems", [])]
    assert field is None or any(found.startswith(field) for found in fields), problem


FREE = {
    "a NUL character": "\x00",
    "half a surrogate pair": "\ud800",
    "a NUL in a name": {"\x00": 1},
    "half a surrogate pair in a name": {"a": {"\udfff": 1}},
    "NaN": float("nan"),
    "infinity in a list": [1, [float("inf")]],
    "an integer beyond every float": HUGE,
    "too much depth": json.loads(DEEP),
}


@pytest.mark.parametrize("what", FREE)
def test_free_json_that_no_database_holds_is_refused_by_name(
    http: httpx2.Client, study: str, trial, what: str
) -> None:
    bad = {"note": FREE[what]}
    good = {"x": 0.5, "k": 1, "c": "a", "o": 1, "m": {"a": 0.5, "b": 0.5}}
    close = {"lease": trial["lease"], "metrics": {"loss": 1}}
    attach = {"parameters": good, "metrics": {"loss": 1}}
    refused(post(http, f"/v1/trials/{trial['id']}/complete", close | {"metadata": bad}), "metadata")
    refused(post(http, f"/v1/studies/{study}/trials/attach", attach | {"metadata": bad}), "metadata")
    refused(post(http, f"/v1/studies/{study}/trials/attach", attach | {"parameters": bad}), "parameters")
    refused(post(http, f"/v1/studies/{study}/suggestions", {"parameters": bad}), "parameters")
    refused(post(http, f"/v1/studies/{study}/trials", {"worker": "w", "fixed": bad}), "fixed")
    refused(post(http, f"/v1/studies/{study}", {"metadata": bad}, "PATCH"))
    refused(post(http, f"/v1/studies/{study}/branch", {"name": "b", "changes": {"metadata": bad}}), "changes")
    lines = json.dumps(attach | {"metadata": bad})
    headers = {"Content-Type": "application/x-ndjson"}
    refused(http.post(f"/v1/studies/{study}/trials/import", content=lines, headers=headers), "rows.1")
    assert http.get(f"/v1/studies/{study}").json()["n_trials"] == 1


@pytest.mark.parametrize("text", ["\x00", "a\x00b", "\ud800", "\udc00\ud800"])
def test_texts_that_no_database_holds_are_refused_by_name(
    http: httpx2.Client, study: str, trial, text: str
) -> None:
    refused(post(http, f"/v1/studies/{study}/trials", {"worker": text}), "worker")
    refused(post(http, f"/v1/studies/{study}/pause", {"reason": text}), "reason")
    at = f"/v1/trials/{trial['id']}"
    refused(post(http, f"{at}/fail", {"lease": trial["lease"], "reason": text}), "reason")
    refused(post(http, f"{at}/cancel", {"reason": text}), "reason")
    refused(post(http, f"{at}/complete", {"lease": text, "metrics": {"loss": 1}}), "lease")
    # a late result's note keeps the names of its metrics, so those must be storable too
    refused(post(http, f"{at}/complete", {"lease": "late", "metrics": {text: 1}}), "metrics")
    refused(post(http, "/v1/keys", {"name": text, "scope": "viewer"}), "name")
    refused(post(http, "/v1/keys", {"name": "n", "scope": "viewer", "project": text}), "project")
    refused(post(http, "/v1/studies", {"name": text}), "name")
    refused(post(http, f"/v1/studies/{study}", {text: 1}, "PATCH"))
    refused(post(http, f"{at}/release", {"lease": trial["lease"], text: 1}))
    assert http.get(at).json()["state"] == "RUNNING"


@pytest.mark.parametrize(
    "changes",
    [
        {"widen": {"m": {"components": [{"name": []}]}}},
        {"widen": {"m": {"components": [{"name": {}}, 3]}}},
        {"widen": {"x": {"high": HUGE}}},
        {"widen": {"x": {"low": -1e308}}},
        {"widen": {"x": {"low": -HUGE}}},
        {"widen": {"k": {"high": HUGE}}},
        {"widen": {"k": {"high": 1e308}}},
        {"widen": {"c": {"choices": [{}, []]}}},
        {"widen": {"c": {"choices": [[]]}}},
        {"widen": {"o": {"levels": [1, 2, 3, HUGE]}}},
        {"widen": {"o": {"levels": [1, 2, 3, "\x00"]}}},
        {"widen": []},
        {"stopping": {"max_seconds": HUGE}},
        {"stopping": []},
        {"staleness": HUGE},
        {"parallelism": HUGE},
        {"surrogate": {"name": "gp", "options": {"fit_points": HUGE}}},
        {"surrogate": {"name": "\x00"}},
        {"surrogate": {"name": []}},
    ],
)
def test_hostile_edits_are_refused(http: httpx2.Client, study: str, changes: dict[str, Any]) -> None:
    answer = post(http, f"/v1/studies/{study}", changes, "PATCH")
    assert answer.status_code in (409, 422), answer.text
    assert http.get(f"/v1/studies/{study}").json()["spec_version"] == 1


def float_space(**fields: Any) -> dict[str, Any]:
    return {"parameters": [{"type": "float", "name": "x", "low": 0, "high": 1} | fields]}


@pytest.mark.parametrize(
    "changes",
    [
        float_space(high=HUGE),
        float_space(low=-1.7e308, high=1.7e308),
        float_space(step=5e-324),
        float_space(high=1e300, step=1e-300),
        float_space(step=HUGE),
        {"parameters": [{"type": "fixed", "name": "x", "value": HUGE}]},
        {"parameters": [{"type": "categorical", "name": "x", "choices": ["\x00", "a"]}]},
        {"parameters": [{"type": "categorical", "name": "x", "choices": ["\ud800", "a"]}]},
        {"constraints": ["1e999*x <= 1"]},
        {"constraints": [{"coefficients": {"x": 1e308}, "operator": "<=", "bound": -1e308}]},
        {"constraints": [{"coefficients": {"x\x00": 1}, "operator": "<=", "bound": 1}]},
        {"constraints": ["x" * 100_000]},
        {"metrics": [{"name": "loss", "goal": "minimize", "threshold": HUGE}]},
        {"staleness": HUGE},
        {"seed": HUGE},
        {"retry": {"lease_seconds": HUGE}},
        {"initial": {"points": [{"x": HUGE}]}},
        {"initial": {"points": [{"x\x00": 1}]}},
    ],
)
def test_hostile_studies_are_refused(http: httpx2.Client, make_spec, changes: dict[str, Any]) -> None:
    spec = make_spec(parameters=[{"type": "float", "name": "x", "low": 0, "high": 1}]) | changes
    refused(post(http, "/v1/studies", spec))
    assert http.get(f"/v1/studies/{spec['name']}").status_code == 404


def test_extreme_studies_that_are_sound_can_be_read_and_claimed(http: httpx2.Client, make_spec) -> None:
    """Many wide ranges: the number of configurations is beyond every float."""
    wide = [{"type": "int", "name": f"k{i}", "low": -(2**53), "high": 2**53} for i in range(40)]
    wide.append({"type": "categorical", "name": "c", "choices": [1e23, 1e300, 10**23, "1e23"]})
    wide.append({"type": "fixed", "name": "f", "value": 1.7e308})
    spec = make_spec(
        parameters=[*wide, {"type": "float", "name": "x", "low": -1e300, "high": 1e300}],
        stopping={"max_seconds": 1e308, "max_cost": 1e308, "target": -1e308},
        staleness=10_000_000,
        metadata={
            "\U0001f600 ￿": [
                "\u2028",
                2**64 - 1,
                10**300,
                1e20,
                1e23,
                1.2345678901234567e19,
                -1.7e308,
                "1e+23",
                "\\u0000e+1",
                "C:\\u0000",
                '"\\u0000"',
                {"\\u0000": "\\u0000"},
                5e-324,
                "\x01\x1f\x7f",
            ]
        },
    )
    made = http.post("/v1/studies", json=spec)
    assert made.status_code == 201, made.text
    assert made.json()["spec"]["metadata"] == spec["metadata"]
    kept = http.get(f"/v1/studies/{spec['name']}").json()["spec"]
    # JSONB would give 1e23 back as an integer, which is another number
    assert repr(kept["metadata"]) == repr(spec["metadata"])
    assert repr(kept["parameters"][-2]["value"]) == "1.7e+308"
    trial = claimed(http, spec["name"], "w\uffff")
    assert trial["parameters"]["f"] == 1.7e308
    body = {"lease": trial["lease"], "metrics": {"loss": 1.7e308}, "cost": 1e100}
    assert http.post(f"/v1/trials/{trial['id']}/complete", json=body).status_code == 200
    refused(post(http, f"/v1/trials/{trial['id']}/complete", body | {"cost": 1e101}), "cost")
    assert http.get(f"/v1/studies/{spec['name']}").json()["best_value"] == 1.7e308


def test_numbers_no_float_holds_are_refused_where_a_number_is_asked_for(
    http: httpx2.Client, study: str, trial
) -> None:
    at, lease = f"/v1/trials/{trial['id']}", trial["lease"]
    refused(post(http, f"{at}/complete", {"lease": lease, "metrics": {"loss": HUGE}}), "metrics.loss")
    refused(post(http, f"{at}/observations", {"lease": lease, "step": HUGE, "metrics": {"loss": 1}}), "step")
    refused(post(http, f"{at}/observations", {"lease": lease, "step": 1, "metrics": {"loss": HUGE}}))
    refused(post(http, f"/v1/studies/{study}/trials", {"worker": "w", "wait_seconds": HUGE}), "wait_seconds")
    refused(post(http, f"/v1/studies/{study}/trials", {"worker": "w", "fixed": {"k": 1e308}}), "fixed.k")
    many = '{"lease": "x", "metrics": {"loss": ' + "9" * 5000 + "}}"
    refused(post(http, f"{at}/complete", many), "body")


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe",
        b'"\xed\xa0\x80"',
        b'{"worker": "\xc3("}',
        DEEP.encode(),
        b"[" * 200_000,
        b"{",
        b"",
        b"\x00",
    ],
)
def test_bodies_that_are_no_json_are_refused(http: httpx2.Client, study: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    for method, path in [("POST", f"/v1/studies/{study}/trials"), ("PATCH", f"/v1/studies/{study}")]:
        refused(http.request(method, path, content=body, headers=headers))


@pytest.mark.parametrize(
    ("media", "content"),
    [
        ("text/csv", 'x,k,c,o,m.a,m.b,loss\n"' + "9" * 200_000 + '",1,a,1,1,0,1\n'),
        ("text/csv", "x,k,c,o,m.a,m.b,loss\n1,1,a\x00,1,1,0,1\n"),
        ("text/csv", "x\r\rloss\n1"),
        ("text/csv", "\x00,loss\n1,1\n"),
        ("text/csv", "x,k,c,o,m.a,m.b,loss\n1e999,1,a,1,1,0,1\n"),
        ("text/csv", "x,k,c,o,m.a,m.b,loss\n1,²,a,1,1,0,1\n"),
        ("application/x-ndjson", DEEP),
        ("application/x-ndjson", "[" * 200_000),
        ("application/x-ndjson", '{"parameters": {"x": ' + "9" * 5000 + "}}"),
        ("application/x-ndjson", '{"parameters": 3, "metrics": []}'),
        ("application/x-ndjson", '{"parameters": {"x": "\\ud800"}}'),
    ],
)
def test_hostile_tables_are_refused(http: httpx2.Client, study: str, media: str, content: str) -> None:
    url = f"/v1/studies/{study}/trials/import"
    refused(http.post(url, content=content.encode(), headers={"Content-Type": media}))


def test_json_lines_may_hold_other_line_separators(http: httpx2.Client, make_spec) -> None:
    study = http.post("/v1/studies", json=make_spec()).json()["id"]
    row = {"parameters": {"x": 0.5, "k": 1}, "metrics": {"loss": 1}, "metadata": {"note": "a\u2028b\x85c"}}
    url, headers = f"/v1/studies/{study}/trials/import", {"Content-Type": "application/x-ndjson"}
    done = http.post(url, content=json.dumps(row, ensure_ascii=False).encode(), headers=headers)
    assert done.json()["imported"] == 1, done.text
    assert http.get(f"/v1/studies/{study}/trials").json()["items"][0]["metadata"] == row["metadata"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("worker=%00", "worker"),
        ("worker=" + "w" * 300, "worker"),
        ("cursor=%00", "cursor"),
        ("cursor=" + "a" * 600, "cursor"),
        ("updated_since=0001-01-01T00:00:00%2B23:59", "updated_since"),
        ("updated_since=9999-12-31T23:59:59-23:59", "updated_since"),
        ("updated_since=%00", "updated_since"),
        ("updated_since=6", "updated_since"),
        ("updated_since=-1e3", "updated_since"),
        ("limit=" + "9" * 400, "limit"),
        ("limit=%D9%A3", None),
        ("state=%00", "state"),
    ],
)
def test_hostile_queries_are_refused_by_name(http: httpx2.Client, study: str, query: str, field) -> None:
    answer = http.get(f"/v1/studies/{study}/trials?{query}")
    if field is None:
        assert answer.status_code in (200, 422)
    else:
        refused(answer, field)


@pytest.mark.parametrize("last", ["²", "9" * 400, "-1", "1e3", "1_0", ""])
def test_hostile_event_ids_are_refused(http: httpx2.Client, study: str, last: str) -> None:
    headers = {"Last-Event-ID": last.encode("utf-8")}
    refused(http.get(f"/v1/studies/{study}/events?follow=false", headers=headers), "Last-Event-ID")
    refused(http.get(f"/v1/studies/{study}/events?follow=false&after={2**63}"), "after")


IDS = [
    "%00",
    "a%00b",
    "%FF%FE",
    "..%2F..%2Fetc%2Fpasswd",
    "%2e%2e",
    "%0d%0aX-Evil:1",
    "x" * 5000,
    "%E2%80%AE",
    "'",
    "*",
    "%",
]


@pytest.mark.parametrize("key", IDS)
def test_hostile_ids_are_refused(http: httpx2.Client, key: str) -> None:
    routes = ("studies/{}", "studies/{}/trials", "studies/{}/best", "studies/{}/events?follow=false")
    for route in (*routes, "trials/{}", "suggestions/{}", "surrogates/{}"):
        answer = http.get("/v1/" + route.format(key))
        assert answer.status_code in (404, 422), answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert "x-evil" not in answer.headers
        assert "root:" not in answer.text
    assert http.delete(f"/v1/keys/{key}").status_code in (404, 405, 422)


def encoded(*values: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


def test_cursors_of_other_lists_and_owners_are_refused(http: httpx2.Client, make_spec) -> None:
    one, two = (http.post("/v1/studies", json=make_spec(name=f"cursor-{i}")).json()["id"] for i in "ab")
    for study in (one, two):
        rows = "".join(
            json.dumps({"parameters": {"x": i / 10, "k": 1}, "metrics": {"loss": i}}) + "\n" for i in range(5)
        )
        http.post(
            f"/v1/studies/{study}/trials/import",
            content=rows,
            headers={"Content-Type": "application/x-ndjson"},
        )
    queries = ("order=number", "order=-number", "updated_since=2020-01-01T00:00:00Z")
    cursors = {
        (study, query): http.get(f"/v1/studies/{study}/trials?limit=2&{query}").json()["next_cursor"]
        for study in (one, two)
        for query in queries
    }
    of_studies = http.get("/v1/studies?limit=1").json()["next_cursor"]
    for (study, query), cursor in cursors.items():
        for other in (one, two):
            for way in queries:
                answer = http.get(f"/v1/studies/{other}/trials", params=f"{way}&cursor={cursor}")
                if (other, way) == (study, query):
                    assert answer.status_code == 200, answer.text
                else:
                    refused(answer, "cursor")
        refused(http.get("/v1/studies", params={"cursor": cursor}), "cursor")
        refused(http.get(f"/v1/studies/{study}/trials", params=f"{query}&cursor={of_studies}"), "cursor")


@pytest.mark.parametrize("query", ["order=number", "updated_since=2020-01-01T00:00:00Z"])
def test_tampered_cursors_are_refused(http: httpx2.Client, study: str, make_spec, query: str) -> None:
    name = make_spec()["name"]
    http.post("/v1/studies", json=make_spec(name=name))
    rows = "x,k,loss\n" + "".join(f"{i / 10},1,{i}\n" for i in range(5))
    http.post(f"/v1/studies/{name}/trials/import", content=rows, headers={"Content-Type": "text/csv"})
    url = f"/v1/studies/{name}/trials"
    good = http.get(f"{url}?limit=2&{query}").json()["next_cursor"]
    mark = json.loads(base64.urlsafe_b64decode(good + "=" * (-len(good) % 4)))[0]
    tampered = [
        "", "!", "====", good[:-3], good[1:], good + good, f"{good}!!", good.swapcase(),
        encoded(), encoded(mark), encoded(mark, 1, 2, 3), encoded(mark, None), encoded(mark, True),
        encoded(mark, 2**70), encoded(mark, -HUGE), encoded(mark, 1.5), encoded(mark, "\x00", "\x00"),
        encoded(mark, "now", "x"),
        encoded(mark, "2020-01-01T00:00:00", "x"), encoded(mark, "0001-01-01T00:00:00+23:59", "x"),
        encoded(mark, "2020-01-01T00:00:00Z", "\ud800"), encoded("x" * 12, 1), encoded([mark], 1),
        base64.urlsafe_b64encode(b'{"a": 1}').decode(), base64.urlsafe_b64encode(b"[" * 300).decode(),
    ]  # fmt: skip
    for cursor in tampered:
        refused(http.get(url, params=f"limit=2&{query}&cursor={cursor}"), "cursor")
        refused(http.get("/v1/studies", params={"cursor": cursor}), "cursor")


@pytest.mark.parametrize("key", ["\x7f", "ÿ" * 256, "k" * 257, ""])
def test_strange_idempotency_keys_are_taken_or_refused(http: httpx2.Client, make_spec, key: str) -> None:
    headers = {"Idempotency-Key": key.encode("latin-1"), "Content-Type": "application/json"}
    answer = http.post("/v1/studies", json=make_spec(), headers=headers)
    assert answer.status_code in (201, 400, 422), answer.text


def test_a_method_that_a_route_lacks_names_those_it_has(http: httpx2.Client) -> None:
    for path, methods in [
        ("/v1/studies", "GET, POST"),
        ("/v1/studies/x", "GET, PATCH"),
        ("/v1/studies/x/trials", "GET, POST"),
        ("/v1/trials/x/heartbeat", "PUT"),
    ]:
        answer = http.request("OPTIONS", path)
        refused(answer, status=405)
        assert answer.headers["allow"] == methods


def test_a_slash_too_much_leads_nowhere(http: httpx2.Client) -> None:
    refused(http.get("/v1/studies/", follow_redirects=False), status=404)
