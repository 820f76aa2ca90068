"""`bo doctor`: what is wrong with this installation, and how to mend it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Final

import typer

from bo_service.client import BoServiceError, Client
from bo_service.commands.output import Json, console, print_json
from bo_service.domain.errors import ServiceError
from bo_service.settings import Settings
from surrogates.registry import installed

MIN_FREE_BYTES: Final = 500e6
IMPORT_SECONDS: Final = 120
BROKER_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    is_fine: bool
    detail: str
    remedy: str = ""


def findings(settings: Settings) -> Iterator[Finding]:
    """Look at everything, the cheap things first."""
    checks: tuple[Callable[[Settings], Finding], ...] = (
        _python,
        _disk,
        _database,
        _service,
        _compute,
        _broker,
        _models,
        _surrogates,
    )
    for check in checks:
        yield check(settings)


def _python(_: Settings) -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), version, "use Python 3.11 or newer")


def _disk(settings: Settings) -> Finding:
    folder = settings.home if settings.home.exists() else settings.home.anchor or "/"
    free = shutil.disk_usage(folder).free
    return Finding(
        "disk", free > MIN_FREE_BYTES, f"{free / 1e9:.1f} GB free", f"make room under {settings.home}"
    )


def _database(settings: Settings) -> Finding:
    from bo_service.bootstrap import database_revision  # noqa: PLC0415  slow to import

    url = settings.resolved_database_url()
    if url.startswith("sqlite") and not settings.home.exists():
        return Finding(
            "database", is_fine=False, detail="there is none yet", remedy="run `bo up` or `bo db upgrade`"
        )
    try:
        present, newest = database_revision(settings)
    except (ServiceError, OSError) as error:
        return Finding("database", is_fine=False, detail=str(error)[:300], remedy="check BO_DATABASE_URL")
    if present != newest:
        return Finding(
            "database",
            is_fine=False,
            detail=f"at revision {present}, needs {newest}",
            remedy="run `bo db upgrade`",
        )
    return Finding("database", is_fine=True, detail=f"revision {present}")


def _service(_: Settings) -> Finding:
    try:
        with Client(patience_seconds=1.0, timeout_seconds=5.0) as client:
            info = client.info()
    except BoServiceError as error:
        first, *more = str(error).splitlines()
        remedy = more[-1].removeprefix("hint: ") if more else ""
        return Finding(
            "service",
            is_fine=False,
            detail=first,
            remedy=remedy or "start it with `bo up`, or set BO_URL and BO_API_KEY",
        )
    detail = f"{client.url}, version {info['version']}, project {info['project']}, {info['scope']} key"
    return Finding("service", is_fine=True, detail=detail)


def _compute(_: Settings) -> Finding:
    try:
        with Client(patience_seconds=1.0, timeout_seconds=5.0) as client:
            ready = client.readiness()
    except (BoServiceError, OSError, ValueError) as error:
        return Finding("compute", is_fine=False, detail=str(error)[:200], remedy="start the service first")
    bad = {name: check["reason"] for name, check in ready["checks"].items() if "reason" in check}
    compute = ready["checks"].get("compute", {"ok": False, "kind": "not looked at"})
    if compute["kind"] == "embedded":
        detail = f"{'alive' if compute['ok'] else 'dead'}, {compute['restarts']} restarts"
        return Finding("compute", bool(compute["ok"]), detail, "look into the service's log")
    detail = "; ".join(bad.values()) or f"queues {', '.join(compute['queues'])}"
    return Finding("compute", not bad, detail, "start `bo relay` and `bo compute`; see `bo status`")


def _broker(settings: Settings) -> Finding:
    if settings.compute != "external" or not settings.broker_url:
        return Finding("broker", is_fine=True, detail="none is needed: the service computes by itself")
    from kombu import Connection  # noqa: PLC0415  slow to import
    from kombu.exceptions import OperationalError  # noqa: PLC0415

    options: dict[str, float] = {}
    if settings.broker_url.startswith("redis"):
        options = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), BROKER_SECONDS)
    broker = Connection(settings.broker_url, connect_timeout=BROKER_SECONDS, transport_options=options)
    shown = broker.as_uri()
    try:
        with broker:
            broker.ensure_connection(max_retries=1, interval_start=0.2)
    except (OperationalError, OSError) as error:
        return Finding(
            "broker", is_fine=False, detail=f"{shown}: {error}", remedy="start it, or check BO_BROKER_URL"
        )
    return Finding("broker", is_fine=True, detail=shown)


def _surrogates(_: Settings) -> Finding:
    found = installed()
    if found.failures:
        detail = "; ".join(f"{name}: {reason}" for name, reason in sorted(found.failures.items()))
        return Finding("surrogates", is_fine=False, detail=detail, remedy="mend or uninstall their packages")
    return Finding("surrogates", is_fine=True, detail=", ".join(sorted(found.plugins)))


def _models(_: Settings) -> Finding:
    code = "import torch, ax; print(torch.__version__, 'cuda' if torch.cuda.is_available() else 'cpu', ax.__version__)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(
            "models", is_fine=False, detail="importing torch and ax takes minutes", remedy="check the disk"
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding("models", is_fine=False, detail=last, remedy="install again: pip install -e .")
    torch_version, device, ax_version = done.stdout.split()[-3:]
    return Finding("models", is_fine=True, detail=f"torch {torch_version} on {device}, ax {ax_version}")


def doctor(as_json: Json = False) -> None:
    """Say what is wrong with this installation and how to mend it; status 1 if anything is."""
    found = []
    for finding in findings(Settings()):
        found.append(finding)
        if not as_json:
            mark = "[green]ok  [/green]" if finding.is_fine else "[red]bad [/red]"
            console.print(f"{mark} {finding.what:10} {finding.detail}", highlight=False)
            if not finding.is_fine:
                console.print(f"     -> {finding.remedy}", highlight=False)
    if as_json:
        print_json([asdict(finding) for finding in found])
    if not all(finding.is_fine for finding in found):
        raise typer.Exit(1)
