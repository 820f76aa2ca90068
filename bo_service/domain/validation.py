"""Schema errors as problems: a dotted path, a reason and a hint for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

from surrogates.errors import Problem

ID_PATTERN: Final = r"^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}$"
"""What the id of a trial, suggestion, key or webhook looks like."""

PARAMETER_TAGS: Final = frozenset(("float", "int", "categorical", "ordinal", "bool", "fixed", "mixture"))

WORDS_ELSEWHERE: Final[Mapping[str, Mapping[str, str]]] = {
    "": {
        "budget": "stopping.max_trials",
        "n_trials": "stopping.max_trials",
        "max_trials": "stopping.max_trials",
        "timeout_seconds": "stopping.max_seconds",
        "direction": "the goal of a metric",
        "directions": "the goal of a metric",
        "objective": "metrics",
        "objectives": "metrics",
        "params": "parameters",
        "space": "parameters",
        "search_space": "parameters",
        "sampler": "surrogate",
        "pruner": "should_stop in the objective: see docs/from-optuna.md",
    },
    "metrics": {
        "direction": "goal",
        "mode": "goal",
        "objective": "goal",
        "type": "goal",
        "min": "lower",
        "max": "upper",
    },
    "parameters": {
        "lower": "low",
        "min": "low",
        "upper": "high",
        "max": "high",
        "bounds": "low and high",
        "range": "low and high",
        "log": 'scale: "log"',
        "values": "choices (categorical) or levels (ordinal)",
        "categories": "choices",
        "options": "choices",
    },
}
"""By where a field stands: in a study, one of its metrics or one of its parameters."""

HINTS: Final = {
    "extra_forbidden": "check the spelling, or leave it out",
    "missing": "add it",
    "union_tag_invalid": "type is one of float, int, categorical, ordinal, bool, fixed, mixture",
    "union_tag_not_found": "give type: float, int, categorical, ordinal, bool, fixed or mixture",
    "finite_number": "give a finite number",
    "model_type": "give an object with named fields, as in the schema at /docs",
    "model_attributes_type": "give an object with named fields, as in the schema at /docs",
    "json_invalid": "send valid JSON",
    "int_type": "give a whole number without quotes",
    "float_type": "give a number without quotes",
    "string_type": "give a text in quotes",
}


def problems_in(error: ValidationError) -> list[Problem]:
    """Every field at fault, once."""
    return problems_from(error.errors(include_url=False, include_context=True))


def problems_from(errors: Sequence[Any], *, skip_first: bool = False) -> list[Problem]:
    """Problems from pydantic's (or FastAPI's) error list; `skip_first` drops `body` or `query` from the path."""
    found: dict[str, Problem] = {}
    for item in errors:
        location = list(item["loc"])[1 if skip_first else 0 :]
        if item["type"] == "json_invalid":
            location = []  # pydantic gives the place in the text
        path = ".".join(_readable(location))
        if path not in found:
            found[path] = Problem(path or "body", _reason(item), _hint(item))
    return list(found.values())


def _readable(location: list[Any]) -> list[str]:
    """The location without the names pydantic gives to the members of a union."""
    parts: list[str] = []
    for position, part in enumerate(location):
        text = str(part)
        is_tag = text in PARAMETER_TAGS and position and isinstance(location[position - 1], int)
        is_union_member = text.startswith(("dict[", "constrained-", "function-", "json-or-python", "union["))
        if not is_tag and not is_union_member and text != "[key]":
            parts.append(text)
    return parts


def _reason(item: Any) -> str:
    if _is_no_id(item):
        return f"{str(item.get('input'))[:64]!r} is not an id"
    message = str(item["msg"])
    for prefix in ("Value error, ", "Assertion failed, "):
        message = message.removeprefix(prefix)
    starts_with_a_name = message[1:2].isupper()
    return message if starts_with_a_name else message[:1].lower() + message[1:]


def _is_no_id(item: Any) -> bool:
    """Whether a text should have been the id of something, by the pattern it was held against."""
    return item["type"] == "string_pattern_mismatch" and (item.get("ctx") or {}).get("pattern") == ID_PATTERN


def _hint(item: Any) -> str:
    if _is_no_id(item):
        return "ids look like 0197d0c5-8f3a-7cc1-9d5e-2b1f6a7c8d9e; lists give them"
    if item["type"] == "extra_forbidden" and (meant := _meant(item["loc"])):
        return f"did you mean {meant}?"
    return HINTS.get(item["type"], "")


def _meant(location: Sequence[Any]) -> str:
    """What other libraries' word for a field of a study is called here; empty for no such word."""
    *path, name = [part for part in location if part not in ("body", *PARAMETER_TAGS)]
    within = str(path[0]) if len(path) == 2 and isinstance(path[1], int) else ("" if not path else "?")
    return WORDS_ELSEWHERE.get(within, {}).get(str(name), "")
