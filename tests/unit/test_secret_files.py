"""Settings and keys from files: who wins, what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bo_service.client import Client
from bo_service.secret_files import SecretUnreadable, secret
from bo_service.settings import Settings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BO_SECRETS_DIR", str(tmp_path))
    monkeypatch.delenv("BO_DATABASE_URL", raising=False)
    return tmp_path


def test_a_setting_is_read_from_its_file_without_the_line_end(folder: Path) -> None:
    (folder / "bo_database_url").write_text("sqlite:///from-a-file.db\n")
    assert Settings().database_url == "sqlite:///from-a-file.db"


def test_the_folder_of_the_files_is_no_setting_that_could_be_given_to_no_effect() -> None:
    assert "secrets_dir" not in Settings.model_fields


def test_the_environment_wins_over_a_file_and_an_argument_over_both(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "bo_database_url").write_text("sqlite:///file.db")
    monkeypatch.setenv("BO_DATABASE_URL", "sqlite:///environment.db")
    assert Settings().database_url == "sqlite:///environment.db"
    assert Settings(database_url="sqlite:///argument.db").database_url == "sqlite:///argument.db"


def test_numbers_and_lists_are_read_as_from_the_environment(folder: Path) -> None:
    (folder / "bo_cors_origins").write_text('["https://example.org"]')
    (folder / "bo_database_pool_size").write_text("7\n")
    assert Settings().cors_origins == ["https://example.org"]
    assert Settings().database_pool_size == 7


def test_a_file_that_is_no_setting_is_left_alone(folder: Path) -> None:
    (folder / "postgres_password").write_text("")
    (folder / "bo_unheard_of").write_text("")
    assert Settings().database_url == ""


def test_an_empty_file_is_a_mistake_and_not_another_database(folder: Path) -> None:
    (folder / "bo_database_url").write_text("\n")
    with pytest.raises(SecretUnreadable, match="bo_database_url: the file is empty"):
        Settings()


def test_bytes_that_are_no_text_are_refused_by_name(folder: Path) -> None:
    (folder / "bo_broker_url").write_bytes(b"\xff\xfe")
    with pytest.raises(SecretUnreadable, match="bo_broker_url: not text"):
        Settings()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_of_somebody_else_is_refused_by_name(folder: Path) -> None:
    (folder / "bo_broker_url").write_text("redis://")
    (folder / "bo_broker_url").chmod(0)
    with pytest.raises(SecretUnreadable, match="may not read it"):
        Settings()


def test_a_folder_that_is_not_there_is_refused_where_it_was_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BO_SECRETS_DIR", str(folder / "none"))
    with pytest.raises(SecretUnreadable, match="BO_SECRETS_DIR"):
        Settings()
    monkeypatch.delenv("BO_SECRETS_DIR")
    assert secret("bo_surely_nothing") is None


def test_the_client_takes_its_key_from_a_file_unless_the_environment_has_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BO_API_KEY", raising=False)
    (folder / "bo_api_key").write_text("bo_from_a_file\n")
    with Client("http://127.0.0.1:9") as client:
        assert client.key == "bo_from_a_file"
    monkeypatch.setenv("BO_API_KEY", "bo_from_the_environment")
    with Client("http://127.0.0.1:9") as client:
        assert client.key == "bo_from_the_environment"
