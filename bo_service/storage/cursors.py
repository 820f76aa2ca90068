"""Opaque page cursors."""

from __future__ import annotations

import base64
import binascii
import json
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
        raise Invalid([Problem("cursor", "is not a cursor of this list", "use next_cursor of the last page")])
    return tuple(values)
