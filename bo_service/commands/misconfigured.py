"""Mistakes in the environment, said in one line each."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Final

from pydantic import ValidationError
from pydantic_settings import SettingsError

from bo_service.settings import Settings

OTHERS: Final = frozenset(("BO_URL", "BO_API_KEY", "BO_SECRETS_DIR", "BO_EVALUATE"))
"""Variables that are no settings of a service."""

ALIKE: Final = 0.8


def variables() -> frozenset[str]:
    """Every environment variable that means something."""
    return OTHERS | {f"BO_{name.upper()}" for name in Settings.model_fields}


def misspelt(environment: Mapping[str, str]) -> Iterator[str]:
    """A warning for each variable that is nearly one of ours."""
    known = variables()
    for name in sorted(environment):
        if not name.startswith("BO_") or name in known:
            continue
        if nearest := difflib.get_close_matches(name, known, n=1, cutoff=ALIKE):
            yield f"warning: {name} means nothing; did you mean {nearest[0]}?"


def problems_of(error: ValidationError | SettingsError) -> list[str]:
    """Each variable at fault and what it wants; never its value, which may be a secret."""
    if isinstance(error, ValidationError):
        return [f"BO_{'.'.join(map(str, e['loc'])).upper()}: {_reason(e['msg'])}" for e in error.errors()]
    # pydantic names the field and the source in quotes, and nothing else
    field = str(error).partition('"')[2].partition('"')[0]
    return [f'BO_{field.upper()}: not JSON; write a list like ["first", "second"]']


def _reason(message: str) -> str:
    return message.removeprefix("Value error, ")
