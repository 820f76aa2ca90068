"""Schema errors as problems: a dotted path, a reason and a hint for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pydantic import ValidationError

from surrogates.errors import Problem

PARAMETER_TAGS: Final = frozenset(("float", "int", "categorical", "ordinal", "bool", "fixed", "mixture"))

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
    message = str(item["msg"])
    for prefix in ("Value error, ", "Assertion failed, "):
        message = message.removeprefix(prefix)
    starts_with_a_name = message[1:2].isupper()
    return message if starts_with_a_name else message[:1].lower() + message[1:]


def _hint(item: Any) -> str:
    return HINTS.get(item["type"], "")
