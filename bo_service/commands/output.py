"""What commands print: tables for people, JSON for programs, errors on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bo_service.client import BoServiceError, Client, Trial

Json = Annotated[bool, typer.Option("--json", help="print JSON for programs")]

console = Console()
errors = Console(stderr=True)


def print_json(content: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(content, indent=2, default=str) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table for people."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        # an id that is cut short is of no use
        table.add_column(column, overflow="fold", no_wrap=column == "id")
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    console.print(table)


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


def short(value: Any) -> str:
    """A value in a table cell."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={short(part)}" for name, part in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def trial_row(trial: Trial) -> list[Any]:
    """A trial in a table: number, state, metrics, parameters, worker."""
    return [trial.number, trial.state, short(trial.metrics), short(trial.parameters), trial.worker]


TRIAL_COLUMNS = ("number", "state", "metrics", "parameters", "worker")
