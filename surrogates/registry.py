"""The installed surrogate plug-ins, found by entry point and described without being loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Final

from pydantic import ValidationError

from surrogates.errors import Problem, UnknownSurrogate
from surrogates.protocol import Plugin

GROUP: Final = "bo_service.surrogates"

logger = logging.getLogger(__name__)


@cache
def plugins() -> Mapping[str, Plugin]:
    """Every installed plug-in by name; one that cannot be imported is logged and left out."""
    found: dict[str, Plugin] = {}
    for entry in entry_points(group=GROUP):
        try:
            loaded = entry.load()
        except (ImportError, AttributeError, SyntaxError) as error:
            logger.warning("surrogate plug-in %r cannot be loaded: %s", entry.name, error)
            continue
        if isinstance(loaded, Plugin) and loaded.name == entry.name:
            found[loaded.name] = loaded
        else:
            logger.warning("entry point %r is no Plugin of that name", entry.name)
    return found


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
        return [
            Problem(".".join(map(str, item["loc"])), str(item["msg"]))
            for item in error.errors(include_url=False)
        ]
    return []
