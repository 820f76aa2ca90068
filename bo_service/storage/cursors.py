"""Opaque page cursors."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime
from typing import Any

from bo_service.domain.errors import Invalid
from surrogates.errors import Problem


def encode_cursor(*values: Any) -> str:
    """A cursor that stands behind the row with these sort values."""
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, *types: type) -> tuple[Any, ...]:
    """The sort values in a cursor.

    Raises: Invalid where the text is no cursor of this list.
    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        values = json.loads(base64.urlsafe_b64decode(padded.encode()))
    except (ValueError, binascii.Error, UnicodeError):
        values = None
    if not (
        isinstance(values, list)
        and len(values) == len(types)
        and all(isinstance(value, kind) for value, kind in zip(values, types, strict=True))
    ):
        raise _foreign()
    return tuple(values)


def decode_time_cursor(cursor: str) -> tuple[datetime, str]:
    """The time and the id in a cursor of a list that is sorted by them. Raises: Invalid."""
    text, key = decode_cursor(cursor, str, str)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise _foreign() from None
    if at.tzinfo is None:
        raise _foreign()
    return at, key


def _foreign() -> Invalid:
    return Invalid([Problem("cursor", "is not a cursor of this list", "use next_cursor of the last page")])
