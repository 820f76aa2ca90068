"""Text and JSON that people write as they like, within what both databases and every reader of JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field

MAX_DEPTH: Final = 64
"""Objects and lists inside each other; JSON libraries give up at a few hundred."""

MAX_NUMBER: Final = 1.7976931348623157e308
"""The largest double; integers below it are taken whatever their size."""


def checked_text(text: str) -> str:
    """The text. Raises: ValueError where it holds what PostgreSQL or UTF-8 cannot hold."""
    if reason := text_flaw(text):
        raise ValueError(reason)
    return text


def text_flaw(text: str) -> str | None:
    """Why a text cannot be stored, or None."""
    if "\x00" in text:
        return "holds a NUL character, which no text may hold"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"holds half a surrogate pair at character {error.start}, which is not Unicode"
    return None


def checked_json(value: Any) -> Any:
    """The value. Raises: ValueError that says where something in it cannot be stored."""
    if flaw := json_flaw(value):
        path, reason = flaw
        raise ValueError(f"{reason} (at {path})" if path else reason)
    return value


def json_flaw(value: Any, path: str = "", depth: int = 0) -> tuple[str, str] | None:
    """The first place that cannot be stored and why: NUL, half a surrogate pair, NaN, infinity, integers beyond
    every double, nesting without an end.
    """
    if not isinstance(value, Mapping | list | tuple):
        reason = _scalar_flaw(value)
        return None if reason is None else (path, reason)
    if depth >= MAX_DEPTH:
        return path, f"is nested more than {MAX_DEPTH} levels deep"
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if reason := text_flaw(name):
                return path, f"has a name that {reason}"
            if found := json_flaw(inner, f"{path}.{name}" if path else name, depth + 1):
                return found
    else:
        for position, inner in enumerate(value):
            if found := json_flaw(inner, f"{path}.{position}" if path else str(position), depth + 1):
                return found
    return None


def _scalar_flaw(value: Any) -> str | None:
    if isinstance(value, str):
        return text_flaw(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "is not finite; JSON has no word for it"
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        return "is an integer that no double reaches; write it as a text"
    return None


Text = Annotated[str, AfterValidator(checked_text), Field(json_schema_extra={"pattern": "^[^\\u0000]*$"})]
"""Any text without NUL."""

FreeJson = Annotated[dict[str, Any], AfterValidator(checked_json)]
"""An object whose fields the service does not look into."""
