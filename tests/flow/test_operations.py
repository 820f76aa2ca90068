"""What those who run the service see: readiness, metrics, status, logs, the audit log, keys that end."""

from __future__ import annotations

import json
import time
import uuid

import httpx2
import pytest

from bo_service.client import Client, SecretLost
from tests.waiting import until

NEIGHBOUR = "neighbour"


@pytest.fixture(scope="module")
def observed(start_module_service):
    """A service of this module's own: its numbers are nobody else's."""
    return start_module_service(
        BO_LOG_FORMAT="json", BO_LOG_LEVEL="debug", BO_CORS_ORIGINS='["https://lab.example"]'
    )


@pytest.fixture
def admin(observed):
    with observed.http() as client:
        yield client


def numbers(http: httpx2.Client) -> dict[str, float]:
    """Every sample of /metrics by its name and labels."""
    answer = http.get("/metrics")
    assert answer.status_code == 200, answer.text
    lines = [line for line in answer.text.splitlines() if line and not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def log_lines(service) -> list[dict]:
    found = []
    for line in (service.home / "service.log").read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # the greeting of `bo up` is for people
    return found


def test_metrics_count_what_happened(observed, admin, make_spec) -> None:
    before = numbers(admin)
    with Client(observed.url, observed.key) as client:
        study = client.create_study(make_spec()).id
        for _ in range(3):
            (trial,) = client.claim(study, "w", wait_seconds=20).trials
            client.heartbeat(trial)
            client.complete(trial, {"loss": 1.0})
    after = numbers(admin)

    def grew(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    assert grew('bo_claims_total{outcome="given"}') == 3
    assert grew('bo_tells_total{state="COMPLETED"}') == 3
    route = 'method="PUT",route="/v1/trials/{trial}/heartbeat"'
    assert grew(f'bo_http_requests_total{{{route},status="200"}}') == 3
    assert grew(f"bo_http_request_seconds_count{{{route}}}") == 3
    assert grew('bo_trials{state="COMPLETED"}') == 3
    assert grew('bo_events_total{kind="trial_closed"}') == 3
    assert grew('bo_events_total{kind="suggestions_prepared"}') >= 1
    assert after["bo_waiting_claims"] == 0


def test_a_strangers_path_is_no_label(observed, admin) -> None:
    for _ in range(3):
        admin.get(f"/nowhere/{uuid.uuid4()}")
    found = [name for name in numbers(admin) if "nowhere" in name]
    assert found == []


def test_the_whole_service_is_for_the_operators_alone(observed, admin) -> None:
    made = admin.post("/v1/keys", json={"name": "n", "scope": "admin", "project": NEIGHBOUR}).json()
    with observed.http(made["key"]) as neighbour:
        for path in ("/metrics", "/v1/status"):
            assert neighbour.get(path).status_code == 403
            assert httpx2.get(observed.url + path).status_code == 401
    viewer = admin.post("/v1/keys", json={"name": "v", "scope": "viewer"}).json()
    with observed.http(viewer["key"]) as watching:
        assert watching.get("/metrics").status_code == 200
        assert watching.get("/v1/status").status_code == 200


def test_the_compute_child_is_among_the_processes(admin) -> None:
    found = until(lambda: admin.get("/v1/status").json()["processes"])
    assert [(p["role"], p["queues"], p["trouble"]) for p in found] == [
        ("compute", ["cpu", "gpu", "llm"], None)
    ]
    assert numbers(admin)['bo_processes{role="compute"}'] == 1


def test_readiness_says_what_is_missing(start_service) -> None:
    """With compute left to others, results are taken all the same: 200, and the reasons."""
    alone = start_service(BO_COMPUTE="external")
    answer = httpx2.get(f"{alone.url}/readyz")
    assert answer.status_code == 200
    found = answer.json()
    assert found["status"] == "degraded"
    assert found["checks"]["database"]["ok"]
    assert "no compute worker" in found["checks"]["compute"]["reason"]
    assert "no relay" in found["checks"]["broker"]["reason"]


def test_readiness_refuses_old_tables(start_service) -> None:
    from bo_service.bootstrap import downgrade_database
    from bo_service.settings import Settings

    old = start_service(BO_COMPUTE="external")
    downgrade_database(Settings(home=old.home), "0002")
    answer = httpx2.get(f"{old.url}/readyz")
    assert answer.status_code == 503
    assert "bo db upgrade" in answer.json()["checks"]["database"]["reason"]
    assert httpx2.get(f"{old.url}/healthz").status_code == 200


def test_a_process_that_a_newer_version_overtook_serves_on(start_service, make_spec) -> None:
    """Rolling upgrades: old processes run while the new ones start, on a database that is already newer."""
    from bo_service.storage.engine import open_engine

    old = start_service(BO_COMPUTE="external")
    engine = open_engine(f"sqlite:///{old.home / 'bo.db'}", pool_size=1)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE bo_service_version SET version_num = '9999'")
    answer = httpx2.get(f"{old.url}/readyz")
    assert answer.status_code == 200
    assert answer.json()["status"] == "degraded"
    check = answer.json()["checks"]["database"]
    assert (check["ok"], check["revision"]) == (False, "9999")
    assert "newer version" in check["reason"]
    with old.http() as http:
        assert http.post("/v1/studies", json=make_spec()).status_code == 201
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM bo_service_version")
    assert httpx2.get(f"{old.url}/readyz").status_code == 503
    engine.dispose()


def test_a_log_line_carries_the_ids_of_its_request(observed, admin, make_spec) -> None:
    mark = f"test-{uuid.uuid4()}"
    study = admin.post("/v1/studies", json=make_spec()).json()["id"]
    answer = admin.get(f"/v1/studies/{study}", headers={"X-Request-ID": mark})
    assert answer.headers["X-Request-ID"] == mark
    # the line is written when the answer has been sent
    line = until(lambda: next((line for line in log_lines(observed) if line.get("request") == mark), None))
    assert line["study"] == study
    assert (line["method"], line["route"], line["status"]) == ("GET", "/v1/studies/{study}", 200)


def test_a_request_id_that_is_none_is_replaced(admin) -> None:
    answer = admin.get("/healthz", headers={"X-Request-ID": "a b" * 100})
    assert len(answer.headers["X-Request-ID"]) == 36


def test_a_fits_log_line_carries_study_and_job(observed, admin, make_spec) -> None:
    study = admin.post("/v1/studies", json=make_spec()).json()["id"]
    lines = until(
        lambda: [line for line in log_lines(observed) if line.get("study") == study and "job" in line]
    )
    assert {line["process"] for line in lines} == {"compute"}


def test_every_answer_has_the_security_headers(observed, admin) -> None:
    for answer in (admin.get("/v1/info"), admin.get("/nowhere"), httpx2.get(f"{observed.url}/v1/info")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert answer.headers["Cache-Control"] == "no-store"
    assert "jsdelivr" in httpx2.get(f"{observed.url}/docs").headers["Content-Security-Policy"]


def test_other_origins_are_closed_unless_named(service, observed) -> None:
    headers = {"Origin": "https://lab.example", "Access-Control-Request-Method": "POST"}
    named = httpx2.options(f"{observed.url}/v1/studies", headers=headers)
    assert named.headers["Access-Control-Allow-Origin"] == "https://lab.example"
    for url, origin in ((observed.url, "https://evil.example"), (service.url, "https://lab.example")):
        answer = httpx2.get(f"{url}/healthz", headers={"Origin": origin})
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_a_key_that_asks_too_often_is_told_to_wait(start_service) -> None:
    slow = start_service(BO_RATE_LIMIT="5")
    with slow.http() as http:
        answers = [http.get("/v1/info") for _ in range(20)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        problem = refused[0].json()
        assert problem["code"] == "rate_limited"
        assert int(refused[0].headers["Retry-After"]) >= 1
        other = http.post  # another key has a bucket of its own
        time.sleep(1.0)
        made = other("/v1/keys", json={"name": "other", "scope": "viewer"}).json()
    with slow.http(made["key"]) as http:
        assert http.get("/v1/info").status_code == 200
    with Client(slow.url, slow.key) as client:
        # the client waits by itself
        assert [client.info()["key"] for _ in range(15)] == ["local user"] * 15


def test_a_key_expires(observed, admin) -> None:
    made = admin.post("/v1/keys", json={"name": "brief", "scope": "viewer", "expires_in_seconds": 1}).json()
    assert made["expires_at"] is not None
    with observed.http(made["key"]) as brief:
        assert brief.get("/v1/info").status_code == 200
        until(lambda: brief.get("/v1/info").status_code == 401, "the end of the key")


def test_a_rotated_key_takes_the_place_of_the_old_one(observed, admin) -> None:
    old = admin.post("/v1/keys", json={"name": "ci", "scope": "worker"}).json()
    kept = admin.post(f"/v1/keys/{old['id']}/rotate", json={"grace_seconds": 3600}).json()
    assert (kept["name"], kept["scope"]) == ("ci", "worker")
    for text in (old["key"], kept["key"]):
        with observed.http(text) as http:
            assert http.get("/v1/info").json()["key"] == "ci"
    new = admin.post(f"/v1/keys/{kept['id']}/rotate").json()
    with observed.http(kept["key"]) as http:
        assert http.get("/v1/info").status_code == 401
    assert admin.post(f"/v1/keys/{kept['id']}/rotate").json()["code"] == "conflict"
    with observed.http(new["key"]) as http:
        assert http.get("/v1/info").status_code == 200


def test_a_key_whose_answer_got_lost_is_told_of_and_can_be_replaced(observed, monkeypatch) -> None:
    """What a retried POST gets is the stored answer, which has no secret."""
    with Client(observed.url, observed.key) as client:
        old = client.create_key("lost", "admin")
        webhook = client.webhooks.create("https://1.1.1.1/")
        monkeypatch.setattr("bo_service.client.transport.uuid.uuid4", lambda: f"again-{old['id']}")
        made = client.rotate_key(old["id"], grace_seconds=60)
        with pytest.raises(SecretLost, match=f"bo key rotate {made['id']} --grace"):
            client.rotate_key(old["id"], grace_seconds=60)
        monkeypatch.setattr("bo_service.client.transport.uuid.uuid4", lambda: f"hook-{old['id']}")
        client.webhooks.rotate(webhook["id"])
        with pytest.raises(SecretLost, match=f"bo webhook rotate {webhook['id']}"):
            client.webhooks.rotate(webhook["id"])
    monkeypatch.undo()
    with Client(observed.url, old["key"]) as client:
        assert client.rotate_key(made["id"])["key"].startswith("bo_")


def test_the_audit_log_says_who_changed_what(observed, admin, make_spec) -> None:
    for name in ("one", "two"):
        admin.post("/v1/keys", json={"name": name, "scope": "viewer"})
    made = admin.post("/v1/keys", json={"name": "ed", "scope": "editor"}).json()
    spec = make_spec()
    with observed.http(made["key"]) as editor:
        study = editor.post("/v1/studies", json=spec, headers={"Idempotency-Key": "a1"}).json()["id"]
        editor.post("/v1/studies", json=spec, headers={"Idempotency-Key": "a1"})
        editor.post(f"/v1/studies/{study}/pause", json={"reason": "lunch"})
        assert editor.post("/v1/studies", json=spec).status_code == 409
        assert editor.get("/v1/audit").status_code == 403
    entries = admin.get("/v1/audit", params={"limit": 3}).json()
    told = [(e["key_name"], e["action"], e["subject"]) for e in entries["items"]]
    assert told == [
        ("ed", "POST /v1/studies/{study}/pause", {"study": study}),
        ("ed", "POST /v1/studies", {"name": spec["name"]}),
        ("local user", "POST /v1/keys", {"name": "ed", "scope": "editor"}),
    ]
    first = entries["items"][0]
    assert first["address"] == "127.0.0.1"
    older = admin.get("/v1/audit", params={"limit": 2, "cursor": entries["next_cursor"]}).json()["items"]
    assert len(older) == 2
    assert all(e["seq"] < entries["items"][-1]["seq"] for e in older)
    with Client(observed.url, observed.key) as client:
        assert next(client.audit())["seq"] >= first["seq"]


def test_bo_status_shows_the_same_in_a_terminal(observed) -> None:
    import os
    import subprocess
    import sys

    environment = os.environ | {"BO_URL": observed.url, "BO_API_KEY": observed.key, "COLUMNS": "160"}
    run = [sys.executable, "-m", "bo_service", "status"]

    def shown() -> str:
        return subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout

    until(lambda: "embedded-" in shown(), "the compute process")
    for words in ("oldest waits", "trials started", "job crashes"):
        assert words in shown()
    found = json.loads(
        subprocess.run([*run, "--json"], env=environment, capture_output=True, text=True, check=True).stdout
    )
    assert found["readiness"]["status"] == "ok"
    assert found["queues"]["cpu"]["resting"] == 0
    assert found["connections"] is None


def test_the_status_counts_trials_as_the_metrics_do(observed, admin, make_spec) -> None:
    before = admin.get("/v1/status").json()
    with Client(observed.url, observed.key) as client:
        study = client.create_study(make_spec()).id
        (trial,) = client.claim(study, "w", wait_seconds=20).trials
        client.release(trial)
        (trial,) = client.claim(study, "w", wait_seconds=20).trials
        client.complete(trial, {"loss": 1.0})
    after, metrics = admin.get("/v1/status").json(), numbers(admin)
    for name, n in (("started", 2), ("closed", 1), ("requeued", 1)):
        assert after[f"trials_{name}"] - before[f"trials_{name}"] == n
        assert after[f"trials_{name}"] == metrics[f'bo_events_total{{kind="trial_{name}"}}']
    assert after["job_crashes"] == 0
