"""What commands print: tables for people, JSON for programs, errors on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Final

import typer
from rich.box import HEAVY_HEAD, SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bo_service.client import BoServiceError, Client, Trial

Json = Annotated[bool, typer.Option("--json", help="print JSON for programs")]

console = Console()
errors = Console(stderr=True)


def print_json(content: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(content, indent=2, default=str) + "\n")


Ids = Annotated[bool, typer.Option("--ids", help="show ids in a narrow terminal, too")]

WIDE: Final = 120
"""A terminal of so many columns shows what narrow ones leave out."""

SHORT: Final = 20
"""A column of no longer cells is not broken, unless it is one of these."""

FREE: Final = frozenset(
    ("name", "metrics", "parameters", "worker", "answer", "trouble", "summary", "subject")
)


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    only_wide: Sequence[str] = (),
) -> None:
    """A table for people; some columns are for wide terminals."""
    is_narrow = console.width < WIDE
    shown = [i for i, column in enumerate(columns) if not (is_narrow and column in only_wide)]
    cells = [["-" if row[i] is None else str(row[i]) for i in shown] for row in rows]
    table = Table(title=title, title_justify="left", box=SIMPLE if is_narrow else HEAVY_HEAD, pad_edge=False)
    for position, i in enumerate(shown):
        longest = max((len(row[position]) for row in cells), default=0)
        # an id that is cut short is of no use
        is_whole = columns[i] == "id" or (columns[i] not in FREE and longest <= SHORT)
        table.add_column(columns[i], overflow="fold", no_wrap=is_whole)
    for row in cells:
        table.add_row(*map(escape, row))
    console.print(table)


def hidden(ids: bool, *always: str, instead: Sequence[str] = ()) -> tuple[str, ...]:
    """The columns a narrow terminal does without: the ids, or others instead where ids were asked for."""
    return (*always, *instead) if ids else (*always, "id")


@contextmanager
def connected() -> Iterator[Client]:
    """A client whose refusals end the command with status 1 and their message."""
    try:
        with Client(patience_seconds=5.0) as client:
            yield client
    except BoServiceError as error:
        errors.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def fail(message: str) -> typer.Exit:
    """Print why and give the exit to raise."""
    errors.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(1)


def minute(at: str | None) -> str | None:
    """A time of the API to the minute, UTC."""
    return at and at[:16].replace("T", " ")


def second(at: str | None) -> str | None:
    """A time of the API to the second, UTC."""
    return at and at[:19].replace("T", " ")


def short(value: Any) -> str:
    """A value in a table cell."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={short(part)}" for name, part in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def trial_row(trial: Trial) -> list[Any]:
    """A trial in a table: number, state, metrics, parameters, worker."""
    return [trial.number, trial.state, short(trial.metrics), short(trial.parameters), trial.worker]


TRIAL_COLUMNS = ("number", "state", "metrics", "parameters", "worker")
