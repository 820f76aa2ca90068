"""`bo export`, `bo import`: the whole database as one file, for a backup or for another database."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final

import typer

from bo_service.commands.output import Json, console, errors, fail

if TYPE_CHECKING:
    from bo_service.bootstrap import ArchiveReport

STREAM: Final = "-"
"""Instead of a file's name: standard output or input."""


def export(
    file: Annotated[str, typer.Argument(help="where to; - for standard output")],
    force: Annotated[bool, typer.Option("--force", help="replace a file that is there")] = False,
    as_json: Json = False,
) -> None:
    """Write the whole database to one file, as it is now; the service may be running."""
    from bo_service.bootstrap import export_database  # noqa: PLC0415  slow to import
    from bo_service.settings import Settings  # noqa: PLC0415

    with _refusals():
        if file == STREAM:
            report = export_database(Settings(), sys.stdout.buffer)
            sys.stdout.buffer.flush()
            _tell("exported", report, None, as_json=as_json, is_output_taken=True)
            return
        path = Path(file)
        if path.exists() and not force:
            raise fail(f"{path} is there already; --force replaces it")
        with _whole_or_not_at_all(path) as stream:
            report = export_database(Settings(), stream)
        _tell("exported", report, path.stat().st_size, as_json=as_json)


def import_(
    file: Annotated[str, typer.Argument(help="what `bo export` wrote; - for standard input")],
    as_json: Json = False,
) -> None:
    """Fill an empty database from such a file, all or nothing; makes and migrates the tables."""
    from bo_service.bootstrap import import_database  # noqa: PLC0415  slow to import
    from bo_service.settings import Settings  # noqa: PLC0415

    with _refusals():
        if file == STREAM:
            _tell("imported", import_database(Settings(), sys.stdin.buffer), None, as_json=as_json)
            return
        with Path(file).open("rb") as stream:
            report = import_database(Settings(), stream)
        _tell("imported", report, Path(file).stat().st_size, as_json=as_json)


@contextmanager
def _refusals() -> Iterator[None]:
    """What cannot be done ends the command with status 1 and the reason."""
    from bo_service.domain.errors import ServiceError  # noqa: PLC0415
    from bo_service.storage.archive_file import ArchiveError  # noqa: PLC0415

    try:
        yield
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        raise fail(f"{named}{error.strerror or error}") from error
    except (ArchiveError, ServiceError) as error:
        raise fail(str(error)) from error


@contextmanager
def _whole_or_not_at_all(path: Path) -> Iterator[BinaryIO]:
    """A file under a passing name, which gets its own when it is complete; its owner's alone: it holds key hashes."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with os.fdopen(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _tell(
    what: str, report: ArchiveReport, n_bytes: int | None, *, as_json: bool, is_output_taken: bool = False
) -> None:
    """Say what was moved: on standard error where standard output is the archive."""
    content: dict[str, Any] = asdict(report) | {"bytes": n_bytes}
    if as_json:
        stream = sys.stderr if is_output_taken else sys.stdout
        stream.write(json.dumps(content, indent=2) + "\n")
        return
    shown = errors if is_output_taken else console
    size = "" if n_bytes is None else f", {n_bytes:,} bytes"
    total = sum(report.rows.values())
    for name, n_rows in report.rows.items():
        shown.print(f"{name:20} {n_rows:>12,}", highlight=False)
    shown.print(f"{what} {total:,} rows{size} in {report.seconds:.1f} s", highlight=False)
