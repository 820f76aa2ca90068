"""Trials as CSV and JSON lines: what export writes, import reads."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from pydantic import ValidationError

from bo_service.api.schemas import AttachIn, measurements
from bo_service.api.views import time_view
from bo_service.domain.errors import Invalid
from bo_service.domain.spec import StudySpec
from bo_service.domain.trial import Trial
from bo_service.domain.validation import problems_in
from bo_service.orchestrator.attach_trials import GivenTrial
from bo_service.orchestrator.record_observation import Outcome
from surrogates import parameters as space
from surrogates.errors import Problem

EXTRA_COLUMNS: Final = ("number", "worker", "source", "reason", "created_at", "closed_at")
"""Written by export, ignored by import."""


def given_trial(body: AttachIn) -> GivenTrial:
    """An attach request as the orchestrator takes it."""
    return GivenTrial(
        parameters=body.parameters,
        outcome=Outcome(measurements=measurements(body.metrics), cost=body.cost, metadata=body.metadata),
        state=body.state,
        reason=body.reason,
    )


def from_json_lines(text: str) -> list[GivenTrial | Problem]:
    """One row a line; a line that cannot be read becomes its problem."""
    # JSON may hold other line separators inside its texts
    return [_json_row(line) for line in text.split("\n") if line.strip()]


def _json_row(line: str) -> GivenTrial | Problem:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Problem("", f"is not JSON: {error}", "write one JSON object a line")
    if not isinstance(content, dict):
        return Problem("", "is not a JSON object", 'write {"parameters": {...}, "metrics": {...}}')
    known = {name: value for name, value in content.items() if name in AttachIn.model_fields}
    return _read(known)


def _read(content: Mapping[str, Any]) -> GivenTrial | Problem:
    try:
        return given_trial(AttachIn.model_validate(content))
    except ValidationError as error:
        return problems_in(error)[0]


def columns(spec: StudySpec) -> list[str]:
    """The columns of a study's CSV."""
    names: list[str] = ["state"]
    for parameter in spec.space:
        if isinstance(parameter, space.Mixture):
            names += [f"{parameter.name}.{component.name}" for component in parameter.components]
        else:
            names.append(parameter.name)
    for metric in spec.metrics:
        names += [metric.name, f"{metric.name}.sem"]
    return [*names, "cost"]


def from_csv(text: str, spec: StudySpec) -> list[GivenTrial | Problem]:
    """Rows of a CSV with a header; an empty cell is an absent value.

    Raises: Invalid where the text is no CSV, or the header has a column that belongs to nothing, or lacks an objective.
    """
    try:
        reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
        header = list(reader.fieldnames or [])
        rows = list(reader)
    except csv.Error as error:
        raise Invalid([Problem("body", f"is not CSV: {error}")]) from error
    allowed = columns(spec)
    problems = [
        Problem(f"header.{name}", "belongs to no parameter or metric", f"columns: {', '.join(allowed)}")
        for name in header
        if name not in allowed and name not in EXTRA_COLUMNS
    ]
    problems += [
        Problem(f"header.{metric.name}", "is missing", "an import needs a column for every objective")
        for metric in spec.objectives
        if metric.name not in header
    ]
    if problems:
        raise Invalid(problems)
    return [_csv_row(row, spec) for row in rows]


def _csv_row(row: Mapping[str | None, Any], spec: StudySpec) -> GivenTrial | Problem:
    if None in row:
        return Problem("", "has more cells than the header")
    cells = {
        str(name): value.strip() for name, value in row.items() if value is not None and value.strip() != ""
    }
    parameters: dict[str, Any] = {}
    for parameter in spec.space:
        value = _cell(parameter, cells)
        if value is not None:
            parameters[parameter.name] = value
    metrics = {
        metric.name: {"value": _number(cells[metric.name]), "sem": _number(cells.get(f"{metric.name}.sem"))}
        for metric in spec.metrics
        if metric.name in cells
    }
    content: dict[str, Any] = {"parameters": parameters, "metrics": metrics}
    content |= {"state": cells["state"]} if "state" in cells else {}
    content |= {"cost": _number(cells["cost"])} if "cost" in cells else {}
    return _read(content)


def _number(cell: str | None) -> float | str | None:
    """The number in a cell; a text that is none is passed on for the schema to refuse by name."""
    if cell is None:
        return None
    try:
        return float(cell) if cell.lower().lstrip("+-") not in ("nan", "inf", "infinity") else cell
    except ValueError:
        return cell


def _cell(parameter: space.Parameter, cells: Mapping[str, str]) -> Any:
    if isinstance(parameter, space.Mixture):
        shares = {
            c.name: _number(cells[f"{parameter.name}.{c.name}"])
            for c in parameter.components
            if f"{parameter.name}.{c.name}" in cells
        }
        return shares or None
    cell = cells.get(parameter.name)
    if cell is None:
        return None
    if isinstance(parameter, space.Float | space.Int):
        return _number(cell)
    choices = (parameter.value,) if isinstance(parameter, space.Fixed) else parameter.choices
    return next((choice for choice in choices if _as_cell(choice) == cell or str(choice) == cell), cell)


def _as_cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def to_csv(trials: Iterable[Trial], spec: StudySpec) -> Iterator[str]:
    """Lines of a CSV with a header; floats are written so that they read back the same."""
    header = [*columns(spec), *EXTRA_COLUMNS]
    yield _csv_line(header)
    for trial in trials:
        cells: dict[str, str] = {"state": trial.state.value, "number": str(trial.number)}
        for name, value in trial.parameters.items():
            if isinstance(value, Mapping):
                cells |= {f"{name}.{component}": repr(share) for component, share in value.items()}
            else:
                cells[name] = _as_cell(value)
        for name, m in trial.measurements.items():
            cells[name] = repr(m.value)
            cells[f"{name}.sem"] = "" if m.sem is None else repr(m.sem)
        cells["cost"] = "" if trial.cost is None else repr(trial.cost)
        cells |= {"worker": trial.worker or "", "source": trial.source.value, "reason": trial.reason or ""}
        cells |= {
            "created_at": time_view(trial.created_at) or "",
            "closed_at": time_view(trial.closed_at) or "",
        }
        yield _csv_line([cells.get(name, "") for name in header])


def _csv_line(cells: list[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def to_json_lines(trials: Iterable[Trial]) -> Iterator[str]:
    """One JSON object a line, in the form that attach takes, plus what export adds."""
    for trial in trials:
        content = {
            "number": trial.number,
            "state": trial.state.value,
            "parameters": trial.parameters,
            "metrics": {name: {"value": m.value, "sem": m.sem} for name, m in trial.measurements.items()},
            "cost": trial.cost,
            "reason": trial.reason,
            "metadata": trial.metadata,
            "worker": trial.worker,
            "source": trial.source.value,
            "created_at": time_view(trial.created_at),
            "closed_at": time_view(trial.closed_at),
        }
        yield json.dumps(content, allow_nan=False) + "\n"
