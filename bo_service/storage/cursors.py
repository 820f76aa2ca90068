"""Opaque page cursors. They carry no rights, so they are not signed; a foreign or broken one is told apart."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from bo_service.domain.errors import Invalid
from bo_service.domain.free_json import json_flaw
from surrogates.errors import Problem

MARK_CHARACTERS: Final = 12
LARGEST_NUMBER: Final = 2**63 - 1
"""The databases' integers end here."""


def _encoded(*values: Any) -> str:
    """A cursor that stands behind the row with these sort values."""
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


def _decoded(cursor: str, *types: type) -> tuple[Any, ...]:
    """The sort values in a cursor; a datetime stands there as text.

    Raises: Invalid where the text is no cursor of this list.
    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        values = json.loads(base64.b64decode(padded.encode(), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        values = None
    if not isinstance(values, list) or len(values) != len(types) or json_flaw(values) is not None:
        raise _foreign()
    return tuple(_typed(value, kind) for value, kind in zip(values, types, strict=True))


def _typed(value: Any, kind: type) -> Any:
    if kind is datetime and isinstance(value, str):
        return _instant(value)
    is_number = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER
    if (kind is int and is_number) or (kind is str and isinstance(value, str)):
        return value
    raise _foreign()


def _instant(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is not None:
            return at.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise _foreign()


@dataclass(frozen=True, slots=True)
class Cursors:
    """The cursors of one list of one owner, such as the trials of a study by number: no other list's are read."""

    name: str
    owner: str

    @property
    def _mark(self) -> str:
        return hashlib.sha256(f"{self.name} {self.owner}".encode()).hexdigest()[:MARK_CHARACTERS]

    def after(self, *values: Any) -> str:
        """The cursor that stands behind the row with these sort values."""
        return _encoded(self._mark, *values)

    def read(self, cursor: str, *types: type) -> tuple[Any, ...]:
        """The sort values in a cursor. Raises: Invalid where it is not one of this list."""
        mark, *values = _decoded(cursor, str, *types)
        if mark != self._mark:
            raise _foreign()
        return tuple(values)


def _foreign() -> Invalid:
    return Invalid([Problem("cursor", "is not a cursor of this list", "use next_cursor of the last page")])
