"""docker-compose.yml, parsed: what no engine is needed for to see."""

from __future__ import annotations

import re
import stat
import subprocess
from pathlib import Path

import pytest
from pydantic import TypeAdapter

import bo_service
from bo_service.orchestrator.manage_keys import KEY_TEXT
from bo_service.settings import Settings
from tests.deploy.compose import ROOT, ComposeService, load_compose, megabytes, seconds

COMPOSE = load_compose()
SERVICES = sorted(COMPOSE.services.values(), key=lambda service: service.name)
OURS = [service for service in SERVICES if service.is_ours]
CLIENT_VARIABLES = {"BO_URL", "BO_API_KEY"}
"""What the Python client reads instead of settings."""

PINNED = re.compile(r"[a-z0-9/-]+:v?\d+\.\d+(\.\d+)?(-[a-z0-9]+)*")

every_service = pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
our_service = pytest.mark.parametrize("service", OURS, ids=lambda service: service.name)


def test_the_services_are_those_of_the_design() -> None:
    assert set(COMPOSE.services) >= {
        *("bo", "api", "relay", "compute-cpu", "compute-gpu", "worker", "postgres", "redis"),
        *("prometheus", "grafana"),
    }
    started = {service.name for service in SERVICES if "profiles" not in service.raw}
    assert started == {"bo", "api", "relay", "compute-cpu", "postgres", "redis"}


@our_service
def test_a_variable_is_a_setting_the_code_reads_and_its_value_a_valid_one(service: ComposeService) -> None:
    for name, value in service.environment.items():
        assert isinstance(value, str), f"{name}: YAML reads {value!r}; quote it"
        if name in CLIENT_VARIABLES:
            continue
        field = name.removeprefix("BO_").lower()
        assert name.startswith("BO_")
        assert field in Settings.model_fields, name
        info = Settings.model_fields[field]
        TypeAdapter(info.annotation).validate_strings(value)


def test_the_clients_variables_are_read() -> None:
    text = (ROOT / "bo_service" / "client" / "transport.py").read_text()
    assert all(f'"{name}"' in text for name in CLIENT_VARIABLES)
    assert 'secret("bo_api_key")' in text


@every_service
def test_a_secret_is_declared_and_somebody_reads_it(service: ComposeService) -> None:
    """By its name as a setting, or by its path in the command, the environment or a mounted file."""
    mounted = [
        ROOT / volume.partition(":")[0] for volume in service.raw.get("volumes", ()) if volume[0] == "."
    ]
    files = [path for found in mounted for path in ([found] if found.is_file() else found.rglob("*.yml"))]
    named = str(service.raw) + "".join(path.read_text() for path in files)
    for secret in service.secrets:
        assert secret.source in COMPOSE.raw["secrets"]
        field = secret.target.removeprefix("bo_")
        is_setting = service.is_ours and secret.target.startswith("bo_") and field in Settings.model_fields
        is_clients = secret.target == "bo_api_key" and "BO_URL" in service.environment
        is_path = f"/run/secrets/{secret.target}" in named
        assert is_setting or is_clients or is_path, secret
        assert f"BO_{field.upper()}" not in service.environment, "the environment would win"


def test_every_declared_secret_is_used_and_made_by_make_secrets(tmp_path: Path) -> None:
    used = {secret.source for service in SERVICES for secret in service.secrets}
    folder = tmp_path / "made"
    script = [str(ROOT / "deploy" / "make_secrets.sh"), str(folder)]
    subprocess.run(script, check=True, capture_output=True)
    made = {path.name: path.read_text() for path in folder.iterdir()}
    assert used == set(COMPOSE.raw["secrets"]) == set(made)
    assert all(Path(given["file"]).name == name for name, given in COMPOSE.raw["secrets"].items())
    # Compose mounts files with their own mode into containers of several users: the folder keeps others out
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o444}
    password = made["postgres_password"].strip()
    assert made["bo_database_url"].strip() == f"postgresql+psycopg://bo:{password}@postgres:5432/bo"
    assert made["redis.conf"].split()[1] in made["bo_broker_url"]
    assert all(KEY_TEXT.fullmatch(made[name].strip()) for name in ("bo_worker_key", "bo_monitor_key"))
    assert len(set(made.values())) == len(made)
    subprocess.run(script, check=True, capture_output=True)
    assert {path.name: path.read_text() for path in folder.iterdir()} == made, "a second run changes nothing"


def test_the_secrets_are_neither_committed_nor_sent_to_the_builder() -> None:
    assert "secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    first = next(rule for rule in rules if not rule.startswith("#"))
    assert first == "*"


def test_no_secret_stands_in_the_file() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert not re.search(r"://[^/\s]*:[^/\s]*@", text), "a URL with a password"
    assert not re.search(
        r"(?i)(password|secret|token|key): *[\"']?[A-Za-z0-9+/_-]{8,}", text.replace("_FILE:", "")
    )


@every_service
def test_a_service_is_locked_down(service: ComposeService) -> None:
    raw = service.raw
    assert raw["read_only"] is True
    assert raw["cap_drop"] == ["ALL"]
    assert "cap_add" not in raw
    assert "privileged" not in raw
    assert raw["security_opt"] == ["no-new-privileges:true"]
    user = raw["user"].split(":")
    assert user[0].isdigit()
    assert user[0] != "0"
    assert any(mount.startswith("/tmp:") for mount in raw["tmpfs"])


@every_service
def test_a_service_has_limits_a_health_check_and_a_way_to_end(service: ComposeService) -> None:
    assert float(service.limits["cpus"]) > 0
    assert megabytes(service.limits["memory"]) >= 128
    assert service.limits["pids"] > 0
    assert service.raw["logging"]["options"].keys() == {"max-size", "max-file"}
    if service.is_one_off:
        return
    assert service.raw["restart"] in ("unless-stopped", "on-failure")
    health = service.raw["healthcheck"]
    assert health["test"][0] in ("CMD", "CMD-SHELL")
    assert seconds(health["timeout"]) <= seconds(health["interval"])
    assert seconds(service.raw["stop_grace_period"]) >= 15


@every_service
def test_an_image_is_pinned_and_ours_carries_our_version(service: ComposeService) -> None:
    assert PINNED.fullmatch(service.raw["image"]), service.raw["image"]
    if service.is_ours:
        assert service.raw["image"].startswith(f"bo-service:{bo_service.__version__}")
        assert service.raw["user"] == "10001:10001"


def test_images_with_different_contents_have_different_names() -> None:
    built: dict[str, set[str]] = {}
    for service in OURS:
        built.setdefault(service.raw["image"], set()).add(str(service.raw["build"]))
    assert all(len(ways) == 1 for ways in built.values())
    assert len(built) == 3


@every_service
def test_a_dependency_exists_starts_along_and_can_keep_its_promise(service: ComposeService) -> None:
    for name, condition in service.depends_on.items():
        other = COMPOSE.services[name]
        assert set(other.raw.get("profiles", ())) <= set(service.raw.get("profiles", ()))
        if condition == "service_completed_successfully":
            assert other.is_one_off
        else:
            assert condition == "service_healthy"
            assert "healthcheck" in other.raw


def test_the_dependencies_have_no_circle_and_all_that_read_the_database_wait_for_the_migration() -> None:
    waits_for: dict[str, set[str]] = {}

    def closure(name: str, path: tuple[str, ...] = ()) -> set[str]:
        assert name not in path, path
        if name not in waits_for:
            direct = COMPOSE.services[name].depends_on
            waits_for[name] = set(direct).union(*(closure(other, (*path, name)) for other in direct))
        return waits_for[name]

    for service in OURS:
        reads_database = any(secret.target == "bo_database_url" for secret in service.secrets)
        if service.name != "bo" and reads_database:
            assert "bo" in closure(service.name), service.name
        assert "postgres" in closure(service.name), service.name


def test_only_the_api_and_the_dashboards_are_published_and_only_to_this_machine() -> None:
    ports = {service.name: service.raw["ports"] for service in SERVICES if "ports" in service.raw}
    assert set(ports) == {"api", "grafana"}
    assert all(port.startswith("127.0.0.1:") for given in ports.values() for port in given)


def test_the_database_and_the_broker_are_on_a_network_without_a_way_out() -> None:
    assert COMPOSE.raw["networks"]["data"]["internal"] is True
    for name in ("postgres", "redis"):
        assert COMPOSE.services[name].raw["networks"] == ["data"]
    assert COMPOSE.services["worker"].raw["networks"] == ["service"], "a worker reaches the API alone"
    for service in SERVICES:
        for network in service.raw["networks"]:
            assert network in COMPOSE.raw["networks"]
        for other in service.depends_on:
            if COMPOSE.services[other].is_one_off:
                continue
            assert set(service.raw["networks"]) & set(COMPOSE.services[other].raw["networks"]), other


def test_the_host_names_are_services_on_a_shared_network(tmp_path: Path) -> None:
    subprocess.run([ROOT / "deploy" / "make_secrets.sh", tmp_path], check=True, capture_output=True)
    for service in SERVICES:
        texts = [*service.environment.values(), *((tmp_path / s.source).read_text() for s in service.secrets)]
        for host in re.findall(r"://(?:[^@/\s]*@)?([a-z-]+)[:/]", " ".join(texts)):
            other = COMPOSE.services[host]
            assert set(other.raw["networks"]) & set(service.raw["networks"]), (service.name, host)


def test_what_is_mounted_is_there_and_volumes_are_declared() -> None:
    for service in SERVICES:
        for volume in service.raw.get("volumes", ()):
            source, target, *mode = volume.split(":")
            assert target.startswith("/")
            if source.startswith("."):
                assert (ROOT / source).exists(), source
                assert mode == ["ro"]
            else:
                assert source in COMPOSE.raw["volumes"]
    used = {v.partition(":")[0] for service in SERVICES for v in service.raw.get("volumes", ())}
    assert set(COMPOSE.raw["volumes"]) <= used


def test_the_connection_pools_together_fit_into_what_postgresql_allows() -> None:
    """Each process may open twice its pool, and two connections for wake-ups."""
    (allowed,) = (
        int(part[16:]) for part in COMPOSE.services["postgres"].command if part[:15] == "max_connections"
    )

    def most(name: str, n_processes: int) -> int:
        pool = int(COMPOSE.services[name].environment["BO_DATABASE_POOL_SIZE"])
        return n_processes * (2 * pool + 2)

    api = most("api", int(COMPOSE.services["api"].option("--processes")))
    # a compute worker's children, and the process that starts them
    compute = most("compute-cpu", 1 + int(COMPOSE.services["compute-cpu"].option("--concurrency")))
    assert api + most("relay", 2) + 3 * compute + most("compute-gpu", 2) <= allowed - 10


def test_a_compute_worker_replaces_its_children_before_the_limit_kills_them() -> None:
    for name in ("compute-cpu", "compute-gpu"):
        service = COMPOSE.services[name]
        child = float(service.environment["BO_COMPUTE_MAX_MEGABYTES"])
        n_children = int(service.option("--concurrency"))
        assert n_children * child + 512 <= megabytes(service.limits["memory"]), name


def test_the_grace_periods_fit_what_a_stop_waits_for() -> None:
    from bo_service.main import DRAIN_SECONDS
    from workers.objective import STOP_SECONDS

    settings = Settings()
    grace = {
        name: seconds(s.raw["stop_grace_period"]) for name, s in COMPOSE.services.items() if not s.is_one_off
    }
    assert grace["api"] >= 2 * DRAIN_SECONDS
    assert grace["worker"] > STOP_SECONDS
    assert grace["compute-cpu"] >= settings.fit_deadline_seconds
    assert grace["compute-gpu"] >= settings.fit_deadline_seconds


def test_the_gpu_worker_asks_for_nvidia_devices() -> None:
    service = COMPOSE.services["compute-gpu"]
    (device,) = service.raw["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert service.option("--queues") == "gpu"
    assert service.raw["profiles"] == ["gpu"]


def test_the_compute_workers_options_are_understood() -> None:
    from workers.compute import parser

    for name in ("compute-cpu", "compute-gpu"):
        assert parser().parse_args(COMPOSE.services[name].command[1:]).concurrency >= 1


def test_variables_of_the_file_are_listed_at_its_top_and_none_looks_like_a_setting() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    head = text.partition("\nname:")[0]
    variables = set(re.findall(r"\$\{(\w+)", text))
    assert variables <= set(re.findall(r"[A-Z_]{5,}", head))
    assert not [name for name in variables if name.startswith("BO_")]
