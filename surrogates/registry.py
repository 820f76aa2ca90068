"""The installed surrogate plug-ins, found by entry point and described without being loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Final

from pydantic import ValidationError

from surrogates.errors import Problem, UnknownSurrogate
from surrogates.protocol import Plugin

GROUP: Final = "bo_service.surrogates"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Installed:
    """What the entry points led to."""

    plugins: Mapping[str, Plugin]
    failures: Mapping[str, str]
    """Entry points that led to no plug-in, each with the reason."""


@cache
def installed() -> Installed:
    """Every entry point, loaded once; what a stranger's module raises is that plug-in's trouble alone."""
    found: dict[str, Plugin] = {}
    failures: dict[str, str] = {}
    for entry in entry_points(group=GROUP):
        try:
            loaded = entry.load()
        except Exception as error:  # noqa: BLE001  any module can stand behind an entry point
            failures[entry.name] = f"{type(error).__name__}: {error}"
            continue
        if not isinstance(loaded, Plugin):
            failures[entry.name] = f"{entry.value} is a {type(loaded).__name__}, no Plugin"
        elif loaded.name != entry.name:
            failures[entry.name] = f"the Plugin at {entry.value} calls itself {loaded.name!r}"
        else:
            found[loaded.name] = loaded
    for name, reason in failures.items():
        logger.warning("surrogate plug-in %r cannot be used: %s", name, reason)
    return Installed(found, failures)


def plugins() -> Mapping[str, Plugin]:
    """Every plug-in that can be used, by name."""
    return installed().plugins


def plugin(name: str) -> Plugin:
    """The plug-in of this name. Raises: UnknownSurrogate."""
    try:
        return plugins()[name]
    except KeyError:
        raise UnknownSurrogate(name, sorted(plugins())) from None


def describe(found: Plugin) -> dict[str, Any]:
    """A plug-in as JSON: name, summary, abilities, schema of its options."""
    return {
        "name": found.name,
        "summary": found.summary,
        "abilities": asdict(found.abilities),
        "options_schema": found.options.model_json_schema(),
    }


def check_options(name: str, options: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with options for this plug-in. Raises: UnknownSurrogate."""
    try:
        plugin(name).options.model_validate(dict(options))
    except ValidationError as error:
        known = ", ".join(plugin(name).options.model_fields)
        return [
            Problem(
                ".".join(map(str, item["loc"])), f"no option of {name}", f"its options: {known or 'none'}"
            )
            if item["type"] == "extra_forbidden"
            else Problem(".".join(map(str, item["loc"])), str(item["msg"]).removeprefix("Value error, "))
            for item in error.errors(include_url=False)
        ]
    return []
