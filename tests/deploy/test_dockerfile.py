"""The Dockerfile, parsed: every source is there, the end is not root, the versions are the tested ones."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field

import bo_service
from tests.deploy.compose import ROOT, load_compose

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@dataclass
class Stage:
    """One FROM and what follows."""

    source: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def arguments(self, instruction: str) -> list[str]:
        return [text for found, text in self.steps if found == instruction]


def stages() -> list[Stage]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    text = re.sub(r"\\\n\s*", " ", text)
    found: list[Stage] = []
    defaults: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "ARG" and not found:
            defaults.update([rest.split("=", 1)])
        elif instruction == "FROM":
            source, _, name = re.sub(r"\$\{(\w+)\}", lambda m: defaults[m[1]], rest).partition(" AS ")
            found.append(Stage(source, name))
        else:
            found[-1].steps.append((instruction, rest.strip()))
    return found


STAGES = stages()
BY_NAME = {stage.name: stage for stage in STAGES if stage.name}
LAST = STAGES[-1]


def with_parents(stage: Stage) -> list[Stage]:
    """The stage and those it is built on, the outermost first."""
    parent = BY_NAME.get(stage.source)
    return [*(with_parents(parent) if parent else []), stage]


def last(stage: Stage, instruction: str) -> str:
    """What an image of this stage has, own or inherited."""
    return [text for part in with_parents(stage) for text in part.arguments(instruction)][-1]


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a path of the context through; the last line that matches it decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!")
        parents = [path, *(path.rsplit("/", n)[0] for n in range(1, path.count("/") + 1))]
        if any(_matches(parent, pattern) for parent in parents):
            sent = rule.startswith("!")
    return sent


def _matches(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatch(path.rsplit("/", 1)[-1], pattern[3:])
    return path.count("/") == pattern.count("/") and fnmatch.fnmatch(path, pattern)


def test_every_copied_file_is_there_and_is_sent_to_the_builder() -> None:
    n_copied = 0
    for stage in STAGES:
        for text in stage.arguments("COPY"):
            words = text.split()
            if words[0].startswith("--from="):
                assert words[0].removeprefix("--from=") in BY_NAME
                continue
            for source in words[:-1]:
                n_copied += 1
                assert (ROOT / source).exists(), source
                assert is_sent(source), f"{source} is ignored"
    assert n_copied > 5


def test_the_builder_gets_the_code_and_nothing_else() -> None:
    sent = {path.name for path in ROOT.iterdir() if is_sent(path.name)}
    packages = {"bo_service", "migrations", "surrogates", "workers"}
    assert sent == packages | {"LICENSE", "README.md", "constraints.txt", "pyproject.toml", "examples"}
    assert is_sent("deploy/requirements_of.py")
    assert not is_sent("deploy/alerts.yml")
    for path in ("secrets/bo_database_url", ".git/config", "demo-data/bo.db", "bo_service/__pycache__/a.pyc"):
        assert not is_sent(path), path
    copied = {word for text in BY_NAME["build"].arguments("COPY") for word in text.split()[:-1]}
    found = PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {pattern.rstrip("*") for pattern in found} <= copied


def test_the_layer_of_requirements_does_not_depend_on_the_code() -> None:
    copied = {word for text in BY_NAME["dependencies"].arguments("COPY") for word in text.split()[:-1]}
    assert copied == {"constraints.txt", "pyproject.toml", "deploy/requirements_of.py"}


def test_pip_takes_the_tested_versions_and_compiles_nothing() -> None:
    runs = [run for stage in STAGES for text in stage.arguments("RUN") for run in text.split("&&")]
    installs = [run for run in runs if "pip install" in run]
    assert len(installs) == 4
    for run in installs:
        assert "constraints.txt" in run
        assert "--only-binary=:all:" in run or "--no-deps" in run
    assert not re.search(r"gcc|g\+\+|build-essential|apt-get", " ".join(runs))


def test_the_requirements_are_those_of_the_package() -> None:
    script = [
        sys.executable,
        str(ROOT / "deploy" / "requirements_of.py"),
        str(ROOT / "pyproject.toml"),
        "otel",
    ]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    project = PYPROJECT["project"]
    assert lines == project["dependencies"] + project["optional-dependencies"]["otel"]


def test_torch_computes_on_cpus_unless_asked() -> None:
    (argument,) = BY_NAME["dependencies"].arguments("ARG")
    assert argument == "TORCH_INDEX=https://download.pytorch.org/whl/cpu"
    assert "TORCH_INDEX" in load_compose().services["compute-gpu"].raw["build"]["args"]


def test_the_base_image_is_pinned() -> None:
    for stage in STAGES:
        if stage.source not in BY_NAME:
            assert re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+", stage.source)
    assert LAST.source == "service"


def test_the_user_is_a_number_that_compose_uses_and_not_root() -> None:
    for stage in (LAST, BY_NAME["service"], BY_NAME["example"]):
        assert last(stage, "USER") == "10001:10001"
    assert {s.raw["user"] for s in load_compose().services.values() if s.is_ours} == {"10001:10001"}
    account = " ".join(BY_NAME["service"].arguments("RUN"))
    assert "--uid 10001 --gid 10001" in account
    assert "--owner=10001 --group=10001" in account


def test_the_entry_point_is_a_program_of_the_package() -> None:
    (entry,) = json.loads(last(LAST, "ENTRYPOINT"))
    assert entry in PYPROJECT["project"]["scripts"]
    assert json.loads(last(LAST, "CMD"))[0] == "up"
    assert last(LAST, "STOPSIGNAL") == "SIGTERM"
    environment = " ".join(BY_NAME["service"].arguments("ENV"))
    assert "PATH=/opt/bo/bin:$PATH" in environment
    assert "python -m venv /opt/bo" in BY_NAME["dependencies"].arguments("RUN")[0]
    assert "HEALTHCHECK" not in {instruction for stage in STAGES for instruction, _ in stage.steps}


def test_the_labels_name_the_version() -> None:
    service = BY_NAME["service"]
    (labels,) = service.arguments("LABEL")
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels
    assert f"VERSION={bo_service.__version__}" in service.arguments("ARG")


def test_compose_builds_stages_that_exist() -> None:
    targets = {s.raw["build"]["target"] for s in load_compose().services.values() if s.is_ours}
    assert targets == {"service", "example"}
    assert targets <= set(BY_NAME)


def test_the_example_worker_finds_its_objective_and_its_study() -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("tune_digits", ROOT / "examples" / "tune_digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    study = json.loads((ROOT / "examples" / "digits.json").read_text())
    assert {name: study[name] for name in module.SPEC} == module.SPEC
    worker = load_compose().services["worker"]
    assert worker.option("--study") == study["name"]
    assert worker.option("--objective") == "tune_digits:objective"
    assert callable(module.objective)
    assert "PYTHONPATH=/opt/examples" in BY_NAME["example"].arguments("ENV")
