"""The form of an archive: gzip'd JSON lines, with counts and hashes at the end.

    {"archive": "bo-service", "format": 1, "revision": "0003", "version": "0.1.0", "written_at": "2030-01-31T09:00:00Z"}
    {"table": "projects", "columns": {"id": "text", "name": "text", "created_at": "time"}}
    ["01J...", "default", "2030-01-30T12:00:00.123456+00:00"]
    ...
    {"end": {"projects": {"rows": 1, "sha256": "...", "last_given": null}, ...}}

Tables come in the order in which rows may refer to each other. `sha256` is over a table's row lines as they stand in
the file, line ends included; `last_given` is the highest number its sequence ever gave.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, BinaryIO, Final

NAME: Final = "bo-service"
FORMAT: Final = 1

COMPRESSION: Final = 4
"""Of 1 to 9; higher levels cost more time than they save bytes here."""

LONGEST_HEAD: Final = 100_000
LONGEST_LINE: Final = 2**30
"""Bytes; a longer line is no row of ours."""

BATCH_ROWS: Final = 1000
BATCH_BYTES: Final = 4_000_000
"""A batch of rows ends at whichever of the two comes first."""

EXACT_BELOW: Final = 1e16
"""Python writes whole floats from here on with an exponent, which PostgreSQL's JSON spells out as an integer."""

Kind = str
"""What a column holds: text, int, float, bool, time (UTC), bytes, json (never SQL's null), nullable_json."""

KINDS: Final = frozenset(("text", "int", "float", "bool", "time", "bytes", "json", "nullable_json"))
ENCODERS: Final[Mapping[Kind, Callable[[Any], Any]]] = {
    "float": lambda value: value if math.isfinite(value) else repr(value),
    "time": datetime.isoformat,
    "bytes": lambda value: base64.b64encode(value).decode(),
}
DECODERS: Final[Mapping[Kind, Callable[[Any], Any]]] = {
    "float": float,
    "time": datetime.fromisoformat,
    "bytes": lambda value: base64.b64decode(value, validate=True),
}
"""The other kinds stand in the file as they are."""


class ArchiveError(Exception):
    """The archive cannot be written or read; the message says why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Where an archive comes from."""

    revision: str
    """Of the tables, as migrations call it."""

    version: str
    """Of the service that wrote it."""

    written_at: str


@dataclass(slots=True)
class Tally:
    """What the last line says of a table."""

    rows: int = 0
    sha256: str = ""
    last_given: int | None = None


@dataclass(slots=True)
class Fingerprint:
    """Equal for equal rows in any order, whichever database they come from."""

    rows: int = 0
    total: int = 0

    def add(self, encoded: Sequence[Any]) -> None:
        """Take in a row as the file has it."""
        content = json.dumps([_spelled_out(value) for value in encoded], sort_keys=True).encode()
        self.total = (self.total + int.from_bytes(hashlib.sha256(content).digest())) % 2**256
        self.rows += 1


def _spelled_out(value: Any) -> Any:
    """As both databases give it back: PostgreSQL's JSON has no exponents, and SQLite no negative zero."""
    if isinstance(value, float):
        return int(Decimal(repr(value))) if abs(value) >= EXACT_BELOW else value + 0.0
    if isinstance(value, dict):
        return {name: _spelled_out(part) for name, part in value.items()}
    return [_spelled_out(part) for part in value] if isinstance(value, list) else value


def _coders(
    kinds: Sequence[Kind], coders: Mapping[Kind, Callable[[Any], Any]]
) -> list[tuple[int, Callable[[Any], Any]]]:
    return [(position, coders[kind]) for position, kind in enumerate(kinds) if kind in coders]


def encoder(kinds: Sequence[Kind]) -> Callable[[Sequence[Any]], list[Any]]:
    """A function from a database row to what stands in the file."""
    coders = _coders(kinds, ENCODERS)

    def encode(row: Sequence[Any]) -> list[Any]:
        values = list(row)
        for position, code in coders:
            if values[position] is not None:
                values[position] = code(values[position])
        return values

    return encode


class ArchiveWriter:
    """Writes an archive line by line; without `close` it is recognisably cut off."""

    def __init__(self, stream: BinaryIO, head: Head) -> None:
        self._gzip = gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=COMPRESSION, mtime=0, filename="")
        self.tallies: dict[str, Tally] = {}
        self._line({"archive": NAME, "format": FORMAT, **asdict(head)})

    def table(
        self, name: str, columns: Mapping[str, Kind], rows: Iterator[Sequence[Any]], last_given: int | None
    ) -> None:
        """Write a table's rows; each has a value for each column."""
        self._line({"table": name, "columns": dict(columns)})
        encode, digest, tally = encoder(list(columns.values())), hashlib.sha256(), Tally()
        for row in rows:
            digest.update(self._line(encode(row)))
            tally.rows += 1
        self.tallies[name] = Tally(tally.rows, digest.hexdigest(), last_given)

    def close(self) -> None:
        """Say what was written."""
        self._line({"end": {name: asdict(tally) for name, tally in self.tallies.items()}})
        self._gzip.close()

    def _line(self, content: Any) -> bytes:
        line = json.dumps(content, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        self._gzip.write(line)
        return line


@dataclass(slots=True)
class ArchivedTable:
    """A table in an archive; its batches must be read before the next table."""

    name: str
    columns: dict[str, Kind]
    _lines: Iterator[tuple[int, bytes]]
    tally: Tally = field(default_factory=Tally)
    fingerprint: Fingerprint = field(default_factory=Fingerprint)

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        """Rows by column name, some at a time. Raises: ArchiveError."""
        digest = hashlib.sha256()
        names, decoders = list(self.columns), _coders(list(self.columns.values()), DECODERS)
        batch: list[dict[str, Any]] = []
        n_bytes = 0
        for number, line in self._lines:
            digest.update(line)
            values = _parsed(line, number)
            if len(values) != len(names):
                raise ArchiveError(f"line {number}: {len(values)} values for {len(names)} columns")
            self.fingerprint.add(values)
            for position, decode in decoders:
                values[position] = _decoded(values[position], decode, number, names[position])
            batch.append(dict(zip(names, values, strict=True)))
            n_bytes += len(line)
            if len(batch) == BATCH_ROWS or n_bytes >= BATCH_BYTES:
                yield batch
                batch, n_bytes = [], 0
        if batch:
            yield batch
        self.tally = Tally(self.fingerprint.rows, digest.hexdigest())


def _parsed(line: bytes, number: int) -> Any:
    try:
        return json.loads(line, parse_constant=_refused, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"line {number} is no JSON: the file is damaged") from error


def _refused(word: str) -> float:
    """Python reads NaN and Infinity as numbers, which JSON does not know. Raises: ValueError."""
    raise ValueError(word)


def _finite(text: str) -> float:
    """Python reads 1e999 as infinity; an archive never says so. Raises: ValueError."""
    value = float(text)
    return value if math.isfinite(value) else _refused(text)


def _decoded(value: Any, decode: Callable[[Any], Any], number: int, column: str) -> Any:
    if value is None:
        return None
    try:
        return decode(value)
    except (ValueError, TypeError) as error:
        raise ArchiveError(f"line {number}: {column}: {error}") from error


class ArchiveReader:
    """Reads an archive line by line and checks it against its own last line."""

    def __init__(self, stream: BinaryIO) -> None:
        """Raises: ArchiveError where the stream is no archive, or one of a later form."""
        self._gzip = gzip.GzipFile(fileobj=stream, mode="rb")
        self._number = 0
        self._ahead: bytes | None = None
        self.ends: dict[str, Tally] = {}
        """By table, once all were read."""
        self.head = self._read_head()

    def _read_head(self) -> Head:
        refusal = "this is no archive of bo-service; `bo export` writes them"
        try:
            found = json.loads(self._gzip.readline(LONGEST_HEAD))
            is_ours = found["archive"] == NAME
        except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError) as error:
            raise ArchiveError(refusal) from error
        if not is_ours:
            raise ArchiveError(refusal)
        self._number = 1
        if found.get("format") != FORMAT:
            raise ArchiveError(
                f"the archive has form {found.get('format')!r}, this version reads form {FORMAT}:"
                f" import it with version {found.get('version')} of bo-service or a later one"
            )
        try:
            return Head(**{name: str(found[name]) for name in ("revision", "version", "written_at")})
        except KeyError as error:
            raise ArchiveError(f"line 1 says no {error}: the file is damaged") from error

    def tables(self) -> Iterator[ArchivedTable]:
        """Every table; then the file must end, with tallies that fit. Raises: ArchiveError."""
        read: list[ArchivedTable] = []
        while "end" not in (part := self._part()):
            name, columns = part.get("table"), part.get("columns")
            known = isinstance(name, str) and isinstance(columns, dict) and KINDS.issuperset(columns.values())
            if not known:
                raise ArchiveError(f"line {self._number} is no table this version knows: the file is damaged")
            read.append(ArchivedTable(str(name), dict(columns or {}), self._rows()))
            yield read[-1]
        self._check_end(part["end"], read)

    def _check_end(self, end: Any, read: Sequence[ArchivedTable]) -> None:
        try:
            self.ends = {name: Tally(**tally) for name, tally in end.items()}
        except (AttributeError, TypeError) as error:
            raise ArchiveError("the last line is damaged") from error
        if [table.name for table in read] != list(self.ends):
            raise ArchiveError("the last line names other tables than there are: the file is damaged")
        for table in read:
            said = self.ends[table.name]
            if table.tally.rows != said.rows:
                raise ArchiveError(
                    f"table {table.name}: {table.tally.rows} rows, not {said.rows} as were written"
                )
            if table.tally.sha256 != said.sha256:
                raise ArchiveError(
                    f"table {table.name}: the rows are not those that were written (SHA-256 differs)"
                )
        if self._read(1):
            raise ArchiveError("there is more after the archive's end: the file is damaged")

    def _rows(self) -> Iterator[tuple[int, bytes]]:
        while (line := self._line()).startswith(b"["):
            yield self._number, line
        self._ahead = line

    def _part(self) -> dict[str, Any]:
        line, self._ahead = self._ahead or self._line(), None
        found = _parsed(line, self._number)
        if not isinstance(found, dict):
            raise ArchiveError(f"line {self._number} stands where a table should begin: the file is damaged")
        return found

    def _line(self) -> bytes:
        line = self._read(None)
        self._number += 1
        if not line.endswith(b"\n"):
            raise ArchiveError(f"the archive is cut off at line {self._number}")
        return line

    def _read(self, n_bytes: int | None) -> bytes:
        """So many bytes, or a line."""
        try:
            return self._gzip.readline(LONGEST_LINE) if n_bytes is None else self._gzip.read(n_bytes)
        except EOFError as error:
            raise ArchiveError(f"the archive is cut off after line {self._number}") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ArchiveError(f"the archive is damaged after line {self._number}: {error}") from error
