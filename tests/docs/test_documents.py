"""What the documents say is true."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from bo_service.client import Client
from bo_service.domain import errors
from bo_service.settings import Settings
from tests.conftest import StartService

ROOT = Path(__file__).resolve().parents[2]


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    missing = [name for name in Settings.model_fields if f"`BO_{name.upper()}`" not in text]
    assert missing == []


def test_every_error_code_is_documented() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.ServiceError)]
    missing = [kind.code for kind in kinds if f"`{kind.code}`" not in text]
    assert missing == []


def test_every_metric_is_documented(service) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    with service.http() as http:
        exposed = re.findall(r"^# TYPE (bo_\w+)", http.get("/metrics").text, flags=re.MULTILINE)
    assert len(exposed) > 20
    assert [name for name in exposed if f"`{name}`" not in text and f"`{name}_total`" not in text] == []


def test_every_link_between_documents_leads_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    links = [(path, to) for path in documents for to in re.findall(r"\]\(([^)#]+)\)", path.read_text())]
    broken = [
        f"{path.name}: {to}" for path, to in links if "://" not in to and not (path.parent / to).exists()
    ]
    assert broken == []


def test_the_connections_of_the_example_fit_into_what_postgresql_allows_by_default() -> None:
    """100, three of them for its superusers; see the same sum of Compose in tests/deploy."""
    started = re.findall(
        r"^\$ BO_DATABASE_POOL_SIZE=(\d+) bo (up|relay|compute)(.*) &$",
        (ROOT / "docs" / "deployment.md").read_text(),
        flags=re.MULTILINE,
    )
    assert [command for _, command, _ in started] == ["up", "relay", "compute"]
    n = 0
    for pool, command, options in started:
        more = re.search(r"--(?:processes|concurrency) (\d+)", options)
        n_processes = (command == "compute") + int(more[1] if more else 1)
        n += n_processes * (2 * int(pool) + 2)
    assert n == 82
    assert n <= 100 - 3


def test_the_python_of_the_readme_runs(service) -> None:
    (code,) = python_blocks(ROOT / "README.md")
    environment = os.environ | {"BO_URL": service.url, "BO_API_KEY": service.key}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "learning_rate" in done.stdout


def test_the_receiver_of_the_webhook_page_takes_signed_messages_and_no_others(start_service) -> None:
    (code,) = python_blocks(ROOT / "docs" / "webhooks.md")
    service = start_service(BO_WEBHOOK_ALLOW='["127.0.0.1"]')
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/bo"
    with Client(service.url, service.key) as client:
        made = client.webhooks.create(url)
        environment = os.environ | {"WEBHOOK_SECRET": made["secret"], "PORT": str(port)}
        running = subprocess.Popen(
            [sys.executable, "-u", "-c", code], env=environment, stdout=subprocess.PIPE
        )
        try:
            deadline = time.monotonic() + 30
            forged = {
                "webhook-id": "x",
                "webhook-timestamp": str(int(time.time())),
                "webhook-signature": "v1,AAAA",
            }
            while time.monotonic() < deadline:
                try:
                    answer = httpx2.post(url, content=b"{}", headers=forged)
                    break
                except httpx2.TransportError:
                    time.sleep(0.1)
            assert answer.status_code == 401
            client.webhooks.test(made["id"])
            assert running.stdout is not None
            assert running.stdout.readline().decode().strip() == "bo-service can reach this webhook."
        finally:
            running.kill()
            running.communicate()


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """A folder in which the surrogate of CONTRIBUTING.md is installed: a package with an entry point, nothing else."""
    module, _ = python_blocks(ROOT / "CONTRIBUTING.md")
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nearest.py").write_text(module)
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bo_service.surrogates]\nnearest = my_package.nearest:plugin\n")
    return tmp_path


def test_the_surrogate_of_contributing_keeps_the_contract(stranger: Path) -> None:
    _, contract = python_blocks(ROOT / "CONTRIBUTING.md")
    (stranger / "test_nearest.py").write_text(contract)
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(stranger), "-W", "ignore"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(stranger / "test_nearest.py")],
        env=os.environ | {"PYTHONPATH": str(stranger)},
        capture_output=True,
        text=True,
        check=False,
        cwd=stranger,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_the_surrogate_of_contributing_runs_a_study(stranger: Path, start_service: StartService) -> None:
    service = start_service(PYTHONPATH=str(stranger))
    spec = {
        "name": "strange",
        "parameters": [{"type": "float", "name": "x", "low": 0, "high": 1}],
        "metrics": [{"name": "loss", "goal": "minimize"}],
        "surrogate": {"name": "nearest", "options": {"lengthscale": 0.3}},
        "initial": {"size": 4},
        "stopping": {"max_trials": 10},
    }
    with Client(service.url, service.key) as client:
        study = client.create_study(spec)
        generators = []
        for _ in range(10):
            (trial,) = client.claim(study.id, "me", wait_seconds=30).trials
            generators.append(trial.provenance["generator"])
            client.complete(trial, {"loss": (trial.parameters["x"] - 0.31) ** 2})
        best = client.best(study.id)
    assert [generator.split(":")[0] for generator in generators[5:]] == ["nearest"] * 5
    assert best is not None
    assert best.metrics["loss"] < 1e-3
