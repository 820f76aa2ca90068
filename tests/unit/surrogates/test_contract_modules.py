"""The contract of the surrogates can be tested where nothing of the service is installed."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "tests" / "contract"
MODULES = sorted([*FOLDER.glob("test_*surrogate*.py"), FOLDER / "test_gp_variants.py"])
NEEDED = {"botorch", "gpytorch", "numpy", "pydantic", "pytest", "scipy", "surrogates", "torch"}


def imported(path: Path) -> set[str]:
    """First names of what a module imports when it is loaded."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", [*MODULES, ROOT / "surrogates/testing/contract.py"], ids=lambda p: p.name)
def test_a_gpu_test_needs_the_libraries_of_the_models_alone(path: Path) -> None:
    assert imported(path) <= NEEDED | set(sys.stdlib_module_names)


def test_every_gpu_test_is_in_these_modules() -> None:
    marked = {
        path
        for path in (ROOT / "tests").rglob("test_*.py")
        if path != Path(__file__).resolve() and "mark." + "gpu" in path.read_text()
    }
    assert marked <= set(MODULES)
