"""A service's first key, and one without a key of its own: what containers need."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Service, wait_until_ready
from tests.distributed.conftest import free_port


@pytest.fixture
def bo(tmp_path: Path):
    """Runs `bo` on a database of its own; returns status, output and errors."""

    def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "bo_service", *arguments],
            env=os.environ | {"BO_HOME": str(tmp_path / "home"), "COLUMNS": "200"} | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def a_key() -> str:
    return f"bo_{secrets.token_urlsafe(32)}"


def test_without_tables_there_is_no_key(bo, tmp_path: Path) -> None:
    status, out, err = bo("key", "bootstrap", "me")
    assert (status, out) == (1, "")
    assert "BO_DATABASE_URL" in err
    (tmp_path / "home").mkdir()
    status, _, err = bo("key", "bootstrap", "me")
    assert status == 1
    assert "run `bo db upgrade` first" in err


def test_a_service_without_a_local_key_is_opened_by_the_first_key(bo, tmp_path: Path) -> None:
    """Two containers of one service make no keys of their own, and print none."""
    assert bo("db", "upgrade")[0] == 0
    status, out, err = bo("key", "bootstrap", "me", "--json")
    assert status == 0, err
    made = json.loads(out)
    assert (made["scope"], made["project"]) == ("admin", "default")
    port = free_port()
    environment = os.environ | {"BO_HOME": str(tmp_path / "home"), "BO_LOCAL_KEY": "false"}
    command = [sys.executable, "-m", "bo_service", "up", "--port", str(port)]
    log = (tmp_path / "log").open("wb")
    with log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:
        service = Service(f"http://127.0.0.1:{port}", made["key"], tmp_path, process, port, dict(environment))
        wait_until_ready(service.url, process)
        with service.http() as http:
            keys = http.get("/v1/keys").json()["items"]
        process.terminate()
    assert [key["name"] for key in keys] == ["me"]
    assert not (tmp_path / "home" / "credentials.json").exists()
    said = (tmp_path / "log").read_text()
    assert "bo key bootstrap NAME" in said
    assert "bo_" not in said.replace("bo_service", "")


@pytest.mark.slow
def test_a_key_from_a_file_is_valid_once_and_for_all(bo, service, tmp_path: Path) -> None:
    text = a_key()
    path = tmp_path / "key"
    path.write_text(text + "\n")
    arguments = ("key", "bootstrap", "ci", "--scope", "worker", "--from-file", str(path))
    for _ in range(2):
        status, out, err = bo(*arguments, BO_HOME=str(service.home))
        assert status == 0, err
        assert text not in out
    with service.http(key=text) as http:
        assert http.get("/v1/info").json()["scope"] == "worker"
    with service.http() as http:
        (known,) = (key for key in http.get("/v1/keys").json()["items"] if key["prefix"] == text[:10])
        status, _, err = bo(*arguments[:3], "--from-file", str(path), BO_HOME=str(service.home))
        assert status == 1
        assert "known as a worker key" in err
        http.delete(f"/v1/keys/{known['id']}")
    status, _, err = bo(*arguments, BO_HOME=str(service.home))
    assert status == 1, "a revoked key stays revoked"
    assert "revoked" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["me", "--scope", "boss"], "scope: Input should be 'admin'"),
        (["me", "--project", "../up"], "project: "),
        (["", "--scope", "worker"], "name: "),
        (["me", "--from-file", "/no/such/file"], "/no/such/file: No such file"),
    ],
)
def test_a_mistake_is_named_and_makes_no_key(bo, service, arguments: list[str], says: str) -> None:
    with service.http() as http:
        before = len(http.get("/v1/keys").json()["items"])
        status, out, err = bo("key", "bootstrap", *arguments, BO_HOME=str(service.home))
        assert (status, out) == (1, "")
        assert says in err
        assert len(http.get("/v1/keys").json()["items"]) == before


@pytest.mark.slow
def test_a_key_that_could_be_guessed_is_refused(bo, service, tmp_path: Path) -> None:
    path = tmp_path / "key"
    for weak in ("secret", "bo_" + "a" * 42, a_key() + "!", a_key() + "\nbo_two"):
        path.write_text(weak)
        status, _, err = bo("key", "bootstrap", "me", "--from-file", str(path), BO_HOME=str(service.home))
        assert status == 1, weak
        assert "key: not bo_ and at least 43 random" in err


def test_health_tells_a_service_that_serves_from_one_that_does_not(bo, service) -> None:
    assert bo("health", "--url", service.url)[:2] == (0, "ok\n")
    assert bo("health", BO_URL=service.url)[0] == 0
    assert bo("health", "--key", BO_URL=service.url, BO_API_KEY=service.key)[0] == 0
    status, out, err = bo("health", "--key", BO_URL=service.url, BO_API_KEY=a_key())
    assert (status, out) == (1, "")
    assert "unauthorized" in err
    nobody = f"http://127.0.0.1:{free_port()}"
    status, _, err = bo("health", "--url", nobody)
    assert status == 1
    assert err.startswith(f"{nobody}: ")


def test_health_finds_the_compute_process_of_this_host_and_misses_a_relay(bo, service) -> None:
    home = str(service.home)
    assert bo("health", "--process", "compute", BO_HOME=home)[0] == 0
    status, _, err = bo("health", "--process", "relay", BO_HOME=home)
    assert status == 1
    assert "no relay on" in err
    status, _, err = bo("health", "--process", "compute")
    assert status == 1
    assert "the database does not answer" in err


def test_a_second_service_of_the_same_user_redirects_nobody(bo, start_service, tmp_path: Path) -> None:
    """The key of the first one was printed once: it must stay, and `bo` must go on talking to it."""
    first = start_service()
    port = free_port()
    environment = os.environ | {
        "BO_HOME": str(first.home),
        "BO_DATABASE_URL": f"sqlite:///{tmp_path / 'b.db'}",
    }
    command = [sys.executable, "-m", "bo_service", "up", "--port", str(port)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        wait_until_ready(f"http://127.0.0.1:{port}", process)
        home = {"BO_HOME": str(first.home)}
        assert bo("study", "list", **home)[0] == 0
        status, _, err = bo("study", "list", BO_URL=f"http://127.0.0.1:{port}", **home)
        assert status == 0, err
        status, _, err = bo("study", "list", BO_URL=first.url)
        assert status == 1
        assert "credentials.json has no key" in err
        process.terminate()
        assert process.stdout is not None
        said = process.stdout.read()
    assert f"without BO_URL they still talk to {first.url}, which answers" in said
    assert f"export BO_URL=http://127.0.0.1:{port}" in said
