"""Results as JSON lines, to which a run that was cut short can be added."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """Every whole line; a last one that was cut short is passed over."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    records = [json.loads(line) for line in lines[:-1] if line]
    return records + ([] if _is_torn(lines[-1]) else [json.loads(lines[-1])])


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line and have it on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _drop_torn_end(path)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _is_torn(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return True
    return False


def _drop_torn_end(path: Path) -> None:
    """End the file with a whole line, so that the next one stands alone."""
    content = path.read_bytes() if path.exists() else b""
    if not content or content.endswith(b"\n"):
        return
    whole, newline, last = content.rpartition(b"\n")
    kept = whole + newline if _is_torn(last.decode(errors="replace")) else content + b"\n"
    path.write_bytes(kept)
