"""docs/studies.md knows every field of a specification, and docs/from-optuna.md runs."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys

import pytest
from pydantic import BaseModel

from bo_service.domain import spec, spec_parameters
from bo_service.domain.spec import StudySpec
from bo_service.domain.spec_checks import problems_of
from tests.docs.test_documents import ROOT, python_blocks

STUDIES = (ROOT / "docs" / "studies.md").read_text()
MODELS = {
    name: model
    for module in (spec, spec_parameters)
    for name, model in vars(module).items()
    if inspect.isclass(model)
    and issubclass(model, BaseModel)
    and model.__module__ == module.__name__
    and model.model_fields
    and not name.startswith("_")
}
ELSEWHERE = {"retry", "stopping"}
"""Fields of a study whose defaults stand in tables of their own."""


def section(name: str) -> str:
    found = re.search(rf"^##+ {name}\n(.*?)(?=^##|\Z)", STUDIES, flags=re.DOTALL | re.MULTILINE)
    assert found is not None, f"docs/studies.md has no section {name}"
    return found[1]


def rows(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", text, flags=re.MULTILINE))


@pytest.mark.parametrize("name", MODELS)
def test_every_field_is_documented_with_its_default(name: str) -> None:
    documented = rows(section(name))
    fields = MODELS[name].model_fields
    assert documented.keys() == fields.keys()
    for field, info in fields.items():
        if info.is_required():
            assert documented[field] == "required", field
        elif field not in ELSEWHERE:
            default = info.get_default(call_default_factory=True)
            value = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
            assert json.loads(documented[field].strip("`")) == value, field


def test_every_example_is_valid() -> None:
    blocks = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", STUDIES, flags=re.DOTALL)]
    whole, *parts = blocks
    assert problems_of(StudySpec.model_validate(whole)) == []
    types = {part["type"] for part in parts if "type" in part}
    assert types == {"float", "int", "categorical", "ordinal", "bool", "fixed", "mixture"}
    # conditions name parents declared before
    parameters = sorted((p for p in parts if "type" in p), key=lambda p: "active_if" in p)
    metrics = [part for part in parts if "goal" in part]
    constraints = [part for part in parts if "operator" in part]
    together = {"name": "all", "parameters": parameters, "constraints": constraints, "metrics": metrics}
    assert problems_of(StudySpec.model_validate(together)) == []


def test_the_distributions_of_the_page_on_optuna_are_parameters() -> None:
    text = (ROOT / "docs" / "from-optuna.md").read_text()
    found = [json.loads(part) for part in re.findall(r"`(\{\"type\".*?\})`[;, |]", text)]
    assert len(found) >= 6
    parameters = [part | {"name": f"p{i}"} for i, part in enumerate(found)]
    metrics = [{"name": "loss", "goal": "minimize"}]
    assert (
        problems_of(StudySpec.model_validate({"name": "x", "parameters": parameters, "metrics": metrics}))
        == []
    )


def test_the_python_of_the_page_on_optuna_runs_twice(service) -> None:
    (code,) = python_blocks(ROOT / "docs" / "from-optuna.md")
    environment = os.environ | {"BO_URL": service.url, "BO_API_KEY": service.key}
    for n in (5, 10):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.rstrip().endswith(str(n))
