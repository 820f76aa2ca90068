"""What is compared: a plug-in with options, under a label."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

_ARM: Final = re.compile(r"(?:(?P<label>[\w.-]+)=)?(?P<name>[\w.:-]+)(?P<options>\{.*\})?", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """`name` is a plug-in of the registry, or `package.module:attribute` of one that is not installed."""

    label: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def arm(text: str) -> Arm:
    """Read NAME, NAME{"option": value} or LABEL=NAME{...}; without a label the text is the label.

    Raises: ValueError.
    """
    match = _ARM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'cannot read {text!r}; write NAME, or LABEL=NAME{{"option": value}}')
    options = json.loads(match["options"] or "{}")
    written = json.dumps(options, sort_keys=True, separators=(",", ":")) if options else ""
    return Arm(label=match["label"] or match["name"] + written, name=match["name"], options=options)
