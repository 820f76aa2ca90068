"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    path
    for folder in ("bo_service", "surrogates", "workers", "migrations")
    for path in (ROOT / folder).rglob("*.py")
)
FORBIDDEN_NAMES = {"utils", "helpers", "common", "manager", "base", "misc"}
HEAVY = ("torch", "ax", "botorch", "gpytorch", "pandas")
BROAD_EXCEPT_ALLOWED = {
    "bo_service/client/evaluate.py",
    "surrogates/registry.py",
    "workers/embedded.py",
    "workers/house.py",
    "workers/runner.py",
}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_layers_hold() -> None:
    lint_imports = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([str(lint_imports)], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize(
    "module",
    [
        "bo_service.main",
        "bo_service.client",
        "bo_service.cli",
        "surrogates.registry",
        "bo_service.generation.strategy",
    ],
)
def test_importing_it_loads_no_model_library(module: str) -> None:
    loaded = run(f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded == "[]"


def test_describing_every_surrogate_loads_no_model_library() -> None:
    code = (
        "import sys; from surrogates.registry import plugins, describe; "
        "names = sorted(describe(p)['name'] for p in plugins().values()); "
        f"print(names, [m for m in {HEAVY!r} if m in sys.modules])"
    )
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert run(code) == f"{sorted(declared['bo_service.surrogates'])} []"


def test_a_fleets_worker_knows_no_database() -> None:
    code = (
        "import os, sys\n"
        "told = {'objectives': [], 'queues': ['objectives'], 'timeout': None, 'lease_seconds': None}\n"
        "import json; os.environ['BO_EVALUATE'] = json.dumps(told)\n"
        "import workers.evaluate_app\n"
        f"unwanted = {(*HEAVY, 'sqlalchemy', 'psycopg', 'alembic')!r}\n"
        "print([m for m in unwanted if m in sys.modules], 'bo_service.orchestrator.ports' in sys.modules)"
    )
    assert run(code) == "[] False"


def test_fallbacks_live_without_torch() -> None:
    code = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'ax'): raise ImportError(name + ' is broken')\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from bo_service.domain.spec import StudySpec; from bo_service.domain.proposal import *; "
        "from bo_service.generation.strategy import propose; "
        "spec = StudySpec.model_validate({'name': 'a', 'parameters': [{'type': 'float', 'name': 'x', 'low': 0, "
        "'high': 1}], 'metrics': [{'name': 'loss', 'goal': 'minimize'}]}); "
        "view = StudyView(spec=spec, seed=1, data_version=0, n_started=50); "
        "request = ProposalRequest(count=2, fallback_reason='test'); "
        "print(len(propose(view, request, warm_state=None).candidates))"
    )
    assert run(code) == "2"


def test_jobs_without_a_model_run_while_another_thread_imports_torch() -> None:
    """A torch that is half imported is a module without its names; SciPy looks for one while it is imported itself."""
    code = (
        "import sys, types\n"
        "from bo_service.domain.spec import StudySpec; from bo_service.domain.proposal import *; "
        "from workers.tasks import Desk, generate; "
        "Desk(uow=None).prepare(); sys.modules['torch'] = types.ModuleType('torch'); "
        "spec = StudySpec.model_validate({'name': 'a', 'parameters': [{'type': 'float', 'name': x, 'low': 0, 'high': 1}"
        " for x in 'xy'], 'constraints': ['x + y <= 0.1'], 'metrics': [{'name': 'loss', 'goal': 'minimize'}]}); "
        "view = StudyView(spec=spec, seed=1, data_version=0, n_started=0); "
        "print(len(generate(view, ProposalRequest(count=4), None).candidates))"
    )
    assert run(code) == "4"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_has_a_docstring_a_speaking_name_and_a_readable_size(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no docstring"
    assert path.stem not in FORBIDDEN_NAMES
    assert len(text.splitlines()) <= 500
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            is_migration = path.parent.name == "versions"
            assert length <= 60 or is_migration, f"{node.name} has {length} lines"


def test_a_broad_except_stands_only_where_strangers_code_runs() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (
            node.type is None
            or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException"))
        )
    }
    assert found <= BROAD_EXCEPT_ALLOWED
