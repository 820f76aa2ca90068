"""The local user's keys in their file, and how the client finds the one it needs."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import httpx2
import pytest

from bo_service.client import BadUrl, Client
from bo_service.client.errors import Refused
from bo_service.client.transport import _checked
from bo_service.credentials import Credentials, address, credentials_path, read_credentials, write_credentials

A, B = "http://127.0.0.1:8000", "http://127.0.0.1:8001"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BO_HOME", str(tmp_path))
    monkeypatch.delenv("BO_URL", raising=False)
    monkeypatch.delenv("BO_API_KEY", raising=False)
    return tmp_path


def test_a_file_of_one_key_is_still_read(home: Path) -> None:
    (home / "credentials.json").write_text(json.dumps({"url": A, "key": "bo_a"}))
    assert read_credentials() == Credentials(url=A, keys={A: "bo_a"})


@pytest.mark.parametrize("text", ["", "[]", "3", '{"keys": 3}', '{"keys": {"x": 1}, "former": [[1], "x"]}'])
def test_a_damaged_file_holds_nothing(home: Path, text: str) -> None:
    (home / "credentials.json").write_text(text)
    assert read_credentials() == Credentials()


def test_a_key_takes_no_other_away() -> None:
    found = Credentials().with_key(A, "bo_a", is_current=True).with_key(B, "bo_b", is_current=False)
    assert (found.url, found.keys) == (A, {A: "bo_a", B: "bo_b"})
    found = found.with_key(A, "bo_other_database", is_current=True)
    assert found.keys == {B: "bo_b", A: "bo_other_database"}
    assert "bo_a" in found.candidates(A)
    back = found.with_key(A, "bo_a", is_current=True)
    assert back.key_for(A) == "bo_a"
    assert "bo_other_database" in back.candidates(A)


def test_the_file_is_written_whole_and_for_its_owner_alone(home: Path) -> None:
    path = credentials_path()
    path.write_text("before")
    path.chmod(0o644)
    found = Credentials().with_key(A, "bo_a", is_current=True).with_key(A, "bo_b", is_current=True)
    write_credentials(found, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_credentials() == found
    # what reads one key alone finds the current one
    assert {"url": A, "key": "bo_b"}.items() <= json.loads(path.read_text()).items()
    assert [entry.name for entry in home.iterdir()] == ["credentials.json"]


def test_the_names_of_this_machine_are_one() -> None:
    assert address("http://localhost:8000/") == address("http://0.0.0.0:8000") == A
    assert address("https://Example.org/bo/") == "https://Example.org/bo"


def test_the_key_of_a_url_is_found_where_another_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Credentials().with_key(B, "bo_b", is_current=True).with_key(A, "bo_a", is_current=True)
    write_credentials(found, credentials_path())
    with Client() as client:
        assert (client.url, client.key) == (A, "bo_a")
    monkeypatch.setenv("BO_URL", "http://localhost:8001/")
    with Client() as client:
        assert client.key == "bo_b"
    monkeypatch.setenv("BO_API_KEY", "bo_given")
    with Client() as client:
        assert client.key == "bo_given"


def hint_for(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    with Client(url) as client:
        about = client._http._about_the_key
    problem = {"code": "unauthorized", "detail": "no API key", "hint": "ask"}
    with pytest.raises(Refused) as refused:
        _checked(httpx2.Response(401, json=problem), about_the_key=about)
    return str(refused.value)


def test_a_refusal_says_where_keys_were_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    path = credentials_path()
    said = hint_for(B, monkeypatch)
    assert f"{path} has no key" in said
    assert "BO_API_KEY" in said
    write_credentials(Credentials().with_key(A, "bo_a", is_current=True), path)
    assert f"{path} has keys of {A} alone" in hint_for(B, monkeypatch)
    assert f"is kept for {A} in {path}" in hint_for(A, monkeypatch)
    monkeypatch.setenv("BO_API_KEY", "bo_given")
    assert "BO_API_KEY" in hint_for(A, monkeypatch)


@pytest.mark.parametrize("url", ["foo", "ftp://127.0.0.1", "http://", "http://x:port", "http://[bad"])
def test_what_is_no_url_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BO_URL", url)
    with pytest.raises(BadUrl, match="BO_URL"):
        Client()
