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

from bo_service.client import Client
from bo_service.domain import errors
from bo_service.settings import Settings

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


def test_the_surrogate_of_contributing_fits_and_proposes(tmp_path: Path) -> None:
    """Installed as a stranger would: a package with an entry point, and nothing else."""
    module, contract = python_blocks(ROOT / "CONTRIBUTING.md")
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nearest.py").write_text(module)
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bo_service.surrogates]\nnearest = my_package.nearest:plugin\n")
    (tmp_path / "test_nearest.py").write_text(contract)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-W", "ignore"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path / "test_nearest.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
