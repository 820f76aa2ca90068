"""Plug-ins of strangers: one that is broken is its own trouble alone."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from surrogates import registry
from surrogates.errors import Problem, UnknownSurrogate

MODULES = {
    "wrong_name": "def build(request: BasModel) -> None: ...",
    "leaves": "raise RuntimeError('no licence')",
    "number": "plugin = 3",
    "other": "from surrogates.sobol.plugin import plugin",
}


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four entry points that lead to no plug-in, beside those that are installed."""
    for name, text in MODULES.items():
        (tmp_path / f"stranger_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    theirs = [EntryPoint(name, f"stranger_{name}:plugin", registry.GROUP) for name in MODULES]
    ours = list(registry.entry_points(group=registry.GROUP))
    monkeypatch.setattr(registry, "entry_points", lambda *, group: [*theirs, *ours] if group else [])
    registry.installed.cache_clear()
    yield
    registry.installed.cache_clear()


@pytest.mark.usefixtures("strangers")
def test_the_others_go_on_and_the_reason_is_kept() -> None:
    found = registry.installed()
    assert {"gp", "sobol"} <= set(found.plugins)
    assert set(found.failures) == set(MODULES)
    assert found.failures["wrong_name"] == "NameError: name 'BasModel' is not defined"
    assert found.failures["leaves"] == "RuntimeError: no licence"
    assert found.failures["number"] == "stranger_number:plugin is a int, no Plugin"
    assert found.failures["other"] == "the Plugin at stranger_other:plugin calls itself 'sobol'"
    with pytest.raises(UnknownSurrogate, match="leaves"):
        registry.plugin("leaves")


@pytest.mark.parametrize(
    ("options", "path", "word"),
    [
        ({"n_sampels": 3}, "n_sampels", "no option of hmc (its options: device, dtype, noise"),
        ({"width": 1}, "width", "greater than or equal to 2"),
        ({"width": "wide"}, "width", "integer"),
        ({"activation": "sine"}, "activation", "'tanh', 'erf' or 'relu'"),
        ({"device": "banana"}, "device", "pattern"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], path: str, word: str) -> None:
    (problem,) = registry.check_options("hmc", options)
    assert isinstance(problem, Problem)
    assert problem.path == path
    assert word in str(problem)


def test_what_a_validator_says_is_told_as_it_is() -> None:
    (problem,) = registry.check_options("auto", {"candidates": ["gp", "gp"]})
    assert str(problem) == "candidates: a candidate is named twice"


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", None])
def test_devices_go_by_torchs_names(device: str | None) -> None:
    assert registry.check_options("hmc", {"device": device}) == []


def test_the_schema_says_what_an_option_is_for() -> None:
    for found in registry.plugins().values():
        for name, schema in registry.describe(found)["options_schema"].get("properties", {}).items():
            assert schema.get("description"), f"{found.name}: {name}"
