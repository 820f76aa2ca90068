"""Moves a whole database through a file: every table of `tables.py`, whichever database it comes from or goes to.

`processes` stays behind: it says who is alive around the old database. Everything else goes as it is, so keys, replies
under idempotency keys and leases hold at the new address, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    Inspector,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    bindparam,
    column,
    insert,
    inspect,
    select,
    table,
    text,
    update,
)
from sqlalchemy import Table as SqlTable
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError, OperationalError, StatementError
from sqlalchemy.sql.selectable import TableClause
from sqlalchemy.types import TypeEngine

from bo_service.storage.archive_file import (
    ArchivedTable,
    ArchiveError,
    ArchiveReader,
    ArchiveWriter,
    Fingerprint,
    Head,
    Kind,
    Tally,
    encoder,
)
from bo_service.storage.failures import CONTENTION
from bo_service.storage.tables import Json, Table, UtcDateTime

FETCHED_ROWS: Final = 500
FETCHED_WIDE_ROWS: Final = 8
"""Of a table with bytes: the state of one fit may have megabytes."""

LOCK_SECONDS: Final = 10
"""So long an import waits for whoever writes to the new database."""

TYPES: Final[Mapping[Kind, TypeEngine[Any]]] = {
    "text": Text(),
    "int": BigInteger(),
    "float": Float(),
    "bool": Boolean(),
    "time": UtcDateTime(),
    "bytes": LargeBinary(),
    "json": Json,
    "nullable_json": JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql"),
}


def kind_of(found: Column[Any]) -> Kind:
    """What a declared column holds. Raises: TypeError for a type archives do not know yet."""
    kinds: tuple[tuple[type[TypeEngine[Any]], Kind], ...] = (
        (JSON, "nullable_json" if found.nullable else "json"),
        (UtcDateTime, "time"),
        (Boolean, "bool"),
        (Integer, "int"),
        (Float, "float"),
        (LargeBinary, "bytes"),
        (String, "text"),
    )
    for declared, kind in kinds:
        if isinstance(found.type, declared):
            return kind
    raise TypeError(f"archives know no columns of type {found.type!r}: {found}")


def archived(metadata: MetaData) -> list[SqlTable]:
    """The tables an archive holds, each after those it refers to."""
    return [found for found in metadata.sorted_tables if found.info.get("is_archived", True)]


def write_archive(
    connection: Connection, stream: BinaryIO, head: Head, *, metadata: MetaData = Table.metadata
) -> dict[str, Tally]:
    """Write every table, a few rows at a time; returns what was written."""
    writer = ArchiveWriter(stream, head)
    for found in archived(metadata):
        columns = {each.name: kind_of(each) for each in found.columns}
        last_given = _last_given(connection, found.name, columns)
        writer.table(found.name, columns, _rows(connection, found.name, columns), last_given)
    writer.close()
    return writer.tallies


def _target(name: str, columns: Mapping[str, Kind]) -> TableClause:
    """A table by its name and the kinds of its columns: it may be of another revision than `tables.py`."""
    return table(name, *(column(each, TYPES[kind]) for each, kind in columns.items()))


def _rows(connection: Connection, name: str, columns: Mapping[str, Kind]) -> Iterator[Sequence[Any]]:
    n_rows = FETCHED_WIDE_ROWS if "bytes" in columns.values() else FETCHED_ROWS
    query = select(_target(name, columns)).order_by(*_order(connection, name))
    with connection.execute(query.execution_options(yield_per=n_rows)) as result:
        yield from result


def _order(connection: Connection, name: str) -> list[Any]:
    """By primary key, so that an archive of the same rows is the same."""
    return [column(each) for each in inspect(connection).get_pk_constraint(name)["constrained_columns"]]


def _numbered(connection: Connection, name: str, columns: Mapping[str, Kind]) -> str | None:
    """The column whose numbers a sequence gives, if there is one."""
    keys = inspect(connection).get_pk_constraint(name)["constrained_columns"]
    return keys[0] if len(keys) == 1 and columns.get(keys[0]) == "int" else None


def _last_given(connection: Connection, name: str, columns: Mapping[str, Kind]) -> int | None:
    """The highest number the table's sequence gave, also to rows that are gone."""
    key = _numbered(connection, name, columns)
    if key is None:
        return None
    if connection.dialect.name == "sqlite":
        query = text("SELECT seq FROM sqlite_sequence WHERE name = :name").bindparams(name=name)
    else:
        query = text(
            "SELECT pg_sequence_last_value(pg_get_serial_sequence(:name, :key)::regclass)"
        ).bindparams(name=name, key=key)
    found = connection.execute(query).scalar()
    return None if found is None else int(found)


def first_occupied(connection: Connection) -> str | None:
    """A table that has rows; None where the database holds nothing of ours."""
    present = set(inspect(connection).get_table_names())
    for found in archived(Table.metadata):
        if found.name not in present:
            continue
        if connection.execute(select(text("1")).select_from(table(found.name)).limit(1)).first() is not None:
            return found.name
    return None


def refuse_occupied(connection: Connection) -> None:
    """Raises: ArchiveError where the database has rows."""
    if (name := first_occupied(connection)) is not None:
        raise ArchiveError(
            f"the database has rows in {name}: import into an empty one, before a service starts on it"
        )


def load(connection: Connection, archive: ArchiveReader) -> dict[str, Tally]:
    """Fill an empty database and read it again; the caller commits, or the database stays as it was.

    Its tables must be at the archive's revision.
    Raises: ArchiveError where the archive is damaged, or the database has rows or cannot hold what comes.
    """
    _keep_others_out(connection)
    refuse_occupied(connection)
    inspector = inspect(connection)
    loaded = []
    for part in archive.tables():
        _check_columns(part, inspector)
        _insert(connection, part, inspector)
        loaded.append(part)
    for part in loaded:
        _continue_numbers(connection, part, archive.ends[part.name].last_given)
        _compare(connection, part)
    return archive.ends


def _keep_others_out(connection: Connection) -> None:
    """Nobody writes meanwhile; on SQLite the transaction itself sees to that."""
    if connection.dialect.name == "sqlite":
        return
    quote = connection.dialect.identifier_preparer.quote
    present = set(inspect(connection).get_table_names())
    names = [quote(found.name) for found in archived(Table.metadata) if found.name in present]
    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
    try:
        connection.execute(text(f"LOCK TABLE {', '.join(names)} IN EXCLUSIVE MODE"))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) not in CONTENTION:
            raise
        raise ArchiveError("somebody writes to the database: import before a service starts on it") from error
    connection.execute(text("SET LOCAL lock_timeout = 0"))


def _check_columns(part: ArchivedTable, inspector: Inspector) -> None:
    known: set[str] = set()
    if inspector.has_table(part.name):
        known = {each["name"] for each in inspector.get_columns(part.name)}
    if strangers := sorted(set(part.columns) - known):
        raise ArchiveError(f"table {part.name}: the database has no column {', '.join(strangers)}")


def _insert(connection: Connection, part: ArchivedTable, inspector: Inspector) -> None:
    """Insert a table's rows. A row may refer to a later one of its own table: such values are set at the end."""
    target = _target(part.name, part.columns)
    own = [
        key["constrained_columns"][0]
        for key in inspector.get_foreign_keys(part.name)
        if key["referred_table"] == part.name and len(key["constrained_columns"]) == 1
    ]
    keys = inspector.get_pk_constraint(part.name)["constrained_columns"]
    late: list[dict[str, Any]] = []
    for batch in part.batches():
        for row in batch:
            if any(row.get(each) is not None for each in own):
                late.append({f"its_{each}": row[each] for each in [*keys, *own]})
                row.update(dict.fromkeys(own))
        with _fitting(part.name):
            connection.execute(insert(target), batch)
    if late:
        this_row = [target.c[each] == bindparam(f"its_{each}") for each in keys]
        values: dict[str, Any] = {each: bindparam(f"its_{each}") for each in own}
        with _fitting(part.name):
            connection.execute(update(target).where(*this_row).values(values), late)


@contextmanager
def _fitting(name: str) -> Iterator[None]:
    """Say it in words where the database refuses rows."""
    try:
        yield
    except OperationalError:
        raise  # the database's trouble, not the archive's
    except (StatementError, OverflowError, UnicodeError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise ArchiveError(f"table {name}: the database cannot hold its rows: {reason}") from error


def _continue_numbers(connection: Connection, part: ArchivedTable, last_given: int | None) -> None:
    """The next row gets a number that no row ever had."""
    key = _numbered(connection, part.name, part.columns)
    if key is None or last_given is None:
        return
    values: dict[str, Any] = {"name": part.name, "last": last_given}
    if connection.dialect.name == "sqlite":
        connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :name").bindparams(name=part.name))
        connection.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :last)"), values)
    else:
        query = text("SELECT setval(pg_get_serial_sequence(:name, :key), :last)")
        connection.execute(query, values | {"key": key})


def _compare(connection: Connection, part: ArchivedTable) -> None:
    """Read back what was written: it must be what the archive holds."""
    encode, there = encoder(list(part.columns.values())), Fingerprint()
    for row in _rows(connection, part.name, part.columns):
        there.add(encode(row))
    if there != part.fingerprint:
        raise ArchiveError(
            f"table {part.name}: the database gives back {there.rows} rows that are not"
            f" the {part.fingerprint.rows} of the archive"
        )
