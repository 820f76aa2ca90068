"""The key webhooks' secrets follow from: configured, or made once and kept."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from bo_service.domain.errors import NotConfigured
from bo_service.master_key import FILE, master_key
from bo_service.settings import Settings


def test_many_at_once_make_one_key_that_only_its_owner_reads(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    with ThreadPoolExecutor(16) as pool:
        found = {key.value for key in pool.map(lambda _: master_key(settings), range(64)) if key}
    assert len(found) == 1
    assert len(found.pop()) >= 32
    kept = settings.home / FILE
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [path.name for path in settings.home.iterdir()] == [FILE]


def test_a_configured_key_is_used_and_nothing_is_written(tmp_path: Path) -> None:
    for compute in ("embedded", "external"):
        key = master_key(Settings(home=tmp_path, compute=compute, secret_key="k" * 32))
        assert key is not None
        assert key.value == b"k" * 32
    assert list(tmp_path.iterdir()) == []


def test_several_machines_need_a_configured_key(tmp_path: Path) -> None:
    assert master_key(Settings(home=tmp_path, compute="external")) is None
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_not_signed_with(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("short")
    with pytest.raises(NotConfigured, match=FILE):
        master_key(Settings(home=tmp_path))


def test_a_short_key_is_refused_without_being_told(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BO_SECRET_KEY", "canary-too-short")
    with pytest.raises(ValidationError) as refused:
        Settings(home=tmp_path)
    assert "secret_key" in str(refused.value)
    assert "canary" not in str(refused.value)
    monkeypatch.setenv("BO_SECRET_KEY", "")
    assert Settings(home=tmp_path).secret_key is None


def test_settings_do_not_show_the_key(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, secret_key="canary" * 8)
    assert "canary" not in repr(settings) + str(settings) + str(settings.model_dump())
