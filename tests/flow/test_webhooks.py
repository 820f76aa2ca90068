"""Webhooks through HTTP and back: a real service, a real receiver."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bo_service.client import Client, Refused
from tests.conftest import Service, StartService
from tests.receiver import Receiver, listening
from tests.waiting import until

ALLOWED = {"BO_WEBHOOK_ALLOW": '["127.0.0.1"]'}


@pytest.fixture(scope="module")
def notifying(start_module_service: StartService) -> Service:
    """A service that may call receivers on this machine."""
    return start_module_service(**ALLOWED)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with listening(Receiver()) as found:
        yield found


@pytest.fixture
def client(notifying: Service) -> Iterator[Client]:
    with Client(notifying.url, notifying.key) as found:
        yield found


def evaluate(client: Client, study: str, values: list[float]) -> None:
    for value in values:
        (trial,) = client.claim(study, "w", wait_seconds=20).trials
        client.complete(trial, {"loss": value})


def hurry(service: Service) -> None:
    """What waiting for the next try would do."""
    with sqlite3.connect(service.home / "bo.db", timeout=30) as database:
        database.execute("UPDATE webhook_deliveries SET ready_at = '2020-01-01 00:00:00.000000'")
    database.close()


def test_new_best_finished_and_failed_arrive_signed_after_failures(
    notifying: Service, client: Client, receiver: Receiver, make_spec
) -> None:
    study = client.create_study(make_spec(stopping={"max_trials": 3}))
    made = client.webhooks.create(receiver.url, study=study.name)
    receiver.statuses += [500, 503]
    evaluate(client, study.id, [2.0, 3.0, 1.0])
    receiver.wait(2)
    hurry(notifying)
    receiver.until(lambda: len([m for m in receiver.messages if m.answered == 204]) == 3)
    assert all(message.is_signed_by(made["secret"]) for message in receiver.messages)
    kinds = {m.id: m.json["type"] for m in receiver.messages if m.answered == 204}
    assert sorted(kinds.values()) == ["new_best", "new_best", "study_finished"]
    assert len(receiver.messages) == 5
    assert {m.id for m in receiver.messages} == set(kinds), "a repeated message keeps its id"
    (over,) = receiver.of_kind("study_finished")[-1:]
    assert over.json["data"]["study"]["name"] == study.name
    assert over.json["data"]["trial"]["metrics"]["loss"]["value"] == 1.0
    failing = client.create_study(
        make_spec(stopping={"max_failure_rate": 0.1, "min_failures": 1}, retry={"max_attempts": 1})
    )
    client.webhooks.create(receiver.url, study=failing.id, kinds=["study_failed"])
    (trial,) = client.claim(failing.id, "w", wait_seconds=20).trials
    client.fail(trial, "no data")
    receiver.until(lambda: bool(receiver.of_kind("study_failed")))
    assert "max_failure_rate" in receiver.of_kind("study_failed")[0].json["text"]


def test_a_chat_service_gets_a_sentence(client: Client, receiver: Receiver, make_spec) -> None:
    study = client.create_study(make_spec())
    client.webhooks.create(receiver.url, study=study.id, format="slack", kinds=["study_finished"])
    client.stop(study.id, reason="good enough")
    (message,) = receiver.wait(1)
    assert message.json == {"text": f"Study {study.name} has stopped (good enough)."}


def test_a_rotated_secret_and_the_old_one_both_fit(client: Client, receiver: Receiver) -> None:
    made = client.webhooks.create(receiver.url)
    rotated = client.webhooks.rotate(made["id"])
    assert rotated["secret"] != made["secret"]
    client.webhooks.test(made["id"])
    (ping,) = receiver.wait(1)
    assert ping.is_signed_by(made["secret"])
    assert ping.is_signed_by(rotated["secret"])
    assert not ping.is_signed_by("whsec_" + "A" * 44)
    client.webhooks.delete(made["id"])


def test_a_secret_is_shown_once_and_is_nowhere_afterwards(
    notifying: Service, receiver: Receiver, make_spec
) -> None:
    with notifying.http() as http:
        asked = {"headers": {"Idempotency-Key": "hook-1"}, "json": {"url": receiver.url}}
        made = http.post("/v1/webhooks", **asked)
        again = http.post("/v1/webhooks", **asked)
        assert made.status_code == again.status_code == 201
        assert again.json() == made.json() | {"secret": None}
        secret = made.json()["secret"].removeprefix("whsec_")
        hook = f"/v1/webhooks/{made.json()['id']}"
        http.post(f"{hook}/test")
        receiver.wait(1)
        seen = http.get(hook).text + http.get("/v1/webhooks").text + http.get(f"{hook}/deliveries").text
        http.delete(hook)
    assert secret not in seen
    for path in notifying.home.iterdir():
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
    assert stat.S_IMODE((notifying.home / "secret_key").stat().st_mode) == 0o600


def test_deliveries_say_what_became_of_them_and_can_be_sent_again(client: Client, receiver: Receiver) -> None:
    made = client.webhooks.create(receiver.url)
    receiver.statuses.append(410)
    queued = client.webhooks.test(made["id"])
    receiver.wait(1)

    def latest() -> dict[str, Any]:
        return dict(next(client.webhooks.deliveries(made["id"])))

    receiver.until(lambda: latest()["state"] == "FAILED")
    assert latest()["status"] == 410
    assert "410" in client.webhooks.get(made["id"])["disabled_reason"]
    client.webhooks.enable(made["id"])
    client.webhooks.retry(made["id"], queued["id"])
    receiver.until(lambda: latest()["state"] == "DELIVERED")
    assert [message.id for message in receiver.messages] == [queued["id"]] * 2
    assert latest()["next_try_at"] is None
    client.webhooks.delete(made["id"])
    with pytest.raises(Refused) as gone:
        list(client.webhooks.deliveries(made["id"]))
    assert gone.value.status == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"url": "http://169.254.169.254/latest/meta-data"}, "url"),
        ({"url": "https://169.254.169.254/latest/meta-data"}, "url"),
        ({"url": "https://127.0.0.2:8443/"}, "url"),
        ({"url": "https://2130706433/"}, "url"),
        ({"url": "https://[::ffff:127.0.0.2]/"}, "url"),
        ({"url": "https://user:canary-password@example.com/"}, "url"),
        ({"url": "https://127.0.0.1:22/"}, "url"),
        ({"url": "x" * 3000}, "url"),
        ({}, "url"),
        ({"url": "http://127.0.0.1:9999/", "kinds": ["ping"]}, "kinds.0"),
        ({"url": "http://127.0.0.1:9999/", "kinds": ["birthday"]}, "kinds.0"),
        ({"url": "http://127.0.0.1:9999/", "kinds": []}, "kinds"),
        ({"url": "http://127.0.0.1:9999/", "format": "xml"}, "format"),
        ({"url": "http://127.0.0.1:9999/", "secret": "mine"}, "secret"),
    ],
)
def test_a_bad_webhook_is_refused_by_its_field(notifying: Service, body: dict, field: str) -> None:
    with notifying.http() as http:
        before = http.get("/v1/webhooks").json()
        refused = http.post("/v1/webhooks", json=body)
        assert http.get("/v1/webhooks").json() == before
    assert refused.status_code == 422
    assert [problem["field"] for problem in refused.json()["problems"]] == [field]
    assert "canary" not in refused.text


def test_scopes_and_projects_keep_apart(notifying: Service, client: Client, receiver: Receiver) -> None:
    made = client.webhooks.create(receiver.url + "/T0/B0/path-that-is-a-secret")
    hook = f"/v1/webhooks/{made['id']}"
    ping = client.webhooks.test(made["id"])["id"]
    changes: list[tuple[str, str]] = [
        ("POST", f"{hook}/rotate"),
        ("POST", f"{hook}/enable"),
        ("POST", f"{hook}/test"),
        ("POST", f"{hook}/deliveries/{ping}/retry"),
        ("DELETE", hook),
    ]
    for scope in ("viewer", "worker"):
        with notifying.http(client.create_key("k", scope)["key"]) as http:
            assert http.post("/v1/webhooks", json={"url": receiver.url}).status_code == 403
            assert {http.request(method, path).status_code for method, path in changes} == {403}
            seen = http.get(hook)
            assert seen.json()["url"] == f"http://127.0.0.1:{receiver.port}/..."
            assert "path-that-is-a-secret" not in seen.text + http.get("/v1/webhooks").text
            assert http.get(f"{hook}/deliveries").status_code == 200
    with notifying.http(client.create_key("k", "admin", project="elsewhere")["key"]) as http:
        assert http.get("/v1/webhooks").json() == {"items": []}
        for method, path in [*changes, ("GET", hook), ("GET", f"{hook}/deliveries")]:
            assert http.request(method, path).status_code == 404
    assert client.webhooks.get(made["id"])["url"].endswith("path-that-is-a-secret")
    client.webhooks.delete(made["id"])


@pytest.mark.slow
def test_a_sender_killed_between_sending_and_marking_sends_again_under_the_same_id(
    start_service: StartService, receiver: Receiver
) -> None:
    service = start_service(**ALLOWED, BO_FAIL_POINTS="before:webhooks.settle=kill")
    with Client(service.url, service.key) as client:
        made = client.webhooks.create(receiver.url)
        queued = client.webhooks.test(made["id"])
        receiver.wait(1)
        receiver.until((service.home / "fail_points" / "before:webhooks.settle").exists)
        hurry(service)
        receiver.wait(2)
        receiver.until(lambda: next(client.webhooks.deliveries(made["id"]))["state"] == "DELIVERED")
    assert [message.id for message in receiver.messages] == [queued["id"]] * 2
    assert all(message.is_signed_by(made["secret"]) for message in receiver.messages)


def test_on_several_machines_a_missing_key_is_told_by_its_setting(
    start_service: StartService, receiver: Receiver, tmp_path: Path
) -> None:
    external = start_service(**ALLOWED, BO_COMPUTE="external")
    with external.http() as http:
        refused = http.post("/v1/webhooks", json={"url": receiver.url})
    assert (refused.status_code, refused.json()["code"]) == (409, "not_configured")
    assert "BO_SECRET_KEY" in refused.json()["detail"]
    assert not (external.home / "secret_key").exists()


def test_the_command_line_makes_tries_and_removes(notifying: Service, receiver: Receiver) -> None:
    def bo(*arguments: str) -> str:
        environment = os.environ | {"BO_URL": notifying.url, "BO_API_KEY": notifying.key, "COLUMNS": "250"}
        done = subprocess.run(
            [sys.executable, "-m", "bo_service", "webhook", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    made = json.loads(bo("create", receiver.url, "--kind", "study_finished", "--kind", "new_best", "--json"))
    assert made["kinds"] == ["study_finished", "new_best"]
    assert receiver.url in bo("list")
    queued = json.loads(bo("test", made["id"], "--json"))
    (message,) = receiver.wait(1)
    assert message.id == queued["id"]
    until(lambda: "DELIVERED" in bo("deliveries", made["id"]))
    assert "queued" in bo("retry", made["id"], queued["id"])
    assert "whsec_" in bo("rotate", made["id"])
    assert "enabled" in bo("enable", made["id"])
    assert "removed" in bo("delete", made["id"])
    assert made["id"] not in bo("list", "--json")
