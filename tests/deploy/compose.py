"""docker-compose.yml as Compose would read it: anchors merged, variables put in, each service by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}|\$")


def interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    """`${NAME:-default}` replaced in every text, `$$` a plain dollar; a variable without a default must be given."""
    if isinstance(value, dict):
        return {key: interpolated(part, variables) for key, part in value.items()}
    if isinstance(value, list):
        return [interpolated(part, variables) for part in value]
    return VARIABLE.sub(lambda found: _put_in(found, variables), value) if isinstance(value, str) else value


def _put_in(found: re.Match[str], variables: Mapping[str, str]) -> str:
    if found[0] == "$$":
        return "$"
    assert found["name"], f"a lone dollar in {found.string!r}"
    default = found["default"]
    assert default is not None or found["name"] in variables, f"{found['name']} has no default"
    return variables.get(found["name"]) or default


@dataclass(frozen=True)
class Secret:
    """A file a service sees as /run/secrets/TARGET."""

    source: str
    target: str


@dataclass(frozen=True)
class ComposeService:
    """One service."""

    name: str
    raw: Mapping[str, Any]

    @property
    def is_ours(self) -> bool:
        return "build" in self.raw

    @property
    def is_one_off(self) -> bool:
        return self.raw["restart"] == "no"

    @property
    def command(self) -> list[str]:
        return self.raw["command"]

    @property
    def environment(self) -> dict[str, str]:
        return self.raw.get("environment", {})

    @property
    def secrets(self) -> list[Secret]:
        return [
            Secret(**given) if isinstance(given, dict) else Secret(given, given)
            for given in self.raw.get("secrets", [])
        ]

    @property
    def limits(self) -> dict[str, Any]:
        return self.raw["deploy"]["resources"]["limits"]

    @property
    def depends_on(self) -> dict[str, str]:
        return {name: how["condition"] for name, how in self.raw.get("depends_on", {}).items()}

    @property
    def health(self) -> list[str]:
        return self.raw["healthcheck"]["test"]

    def option(self, name: str) -> str:
        """What follows `name` in the command."""
        return self.command[self.command.index(name) + 1]


@dataclass(frozen=True)
class Compose:
    """The whole file."""

    raw: Mapping[str, Any]
    services: Mapping[str, ComposeService]


def load_compose(**variables: str) -> Compose:
    """The file with these variables set, and the defaults of the others."""
    raw = interpolated(yaml.safe_load((ROOT / "docker-compose.yml").read_text()), variables)
    return Compose(raw, {name: ComposeService(name, given) for name, given in raw["services"].items()})


def seconds(text: str) -> float:
    """1m30s as 90."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    parts = re.findall(r"(\d+)(ms|s|m|h)", text)
    assert parts, text
    return sum(float(number) * units[unit] for number, unit in parts)


def megabytes(text: str) -> float:
    """4g as 4096."""
    found = re.fullmatch(r"(\d+)([mg])", text)
    assert found, text
    return float(found[1]) * (1024 if found[2] == "g" else 1)
