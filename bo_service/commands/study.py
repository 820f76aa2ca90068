"""`bo study`: create, list, show, results, state, edits."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bo_service.client import Study
from bo_service.commands.output import (
    TRIAL_COLUMNS,
    Ids,
    Json,
    connected,
    console,
    fail,
    hidden,
    print_json,
    print_table,
    short,
    trial_row,
)

app = typer.Typer(no_args_is_help=True, help="Studies: create, watch, steer.")

StudyName = Annotated[str, typer.Argument(help="id or name")]
Reason = Annotated[str | None, typer.Option(help="kept with the study")]


def read_document(path: Path) -> dict[str, Any]:
    """A .json or .toml file as a mapping."""
    try:
        text = path.read_text()
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise fail(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise fail(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise fail(f"{path}: not a JSON object")
    return content


def study_row(study: Study) -> list[Any]:
    """A study in a table."""
    counts = study.counts
    closed = str(study.n_closed)
    if study.max_trials is not None:
        # what was attached or imported costs nothing of the budget
        closed = f"{study.n_closed - study.raw.get('n_given', 0)} of {study.max_trials}"
    return [
        study.name,
        study.state,
        closed,
        study.n_trials,
        counts["RUNNING"],
        counts["FAILED"],
        None if study.best_value is None else short(study.best_value),
        study.surrogate,
        study.id,
    ]


STUDY_COLUMNS = ("name", "state", "closed", "started", "running", "failed", "best", "surrogate", "id")


def narrow(ids: bool) -> tuple[str, ...]:
    """The columns of a study that a narrow terminal does without."""
    return hidden(ids, "surrogate", instead=("started", "running", "failed"))


@app.command()
def create(
    file: Annotated[Path, typer.Argument(help="the specification, .json or .toml")], as_json: Json = False
) -> None:
    """Create a study from a file."""
    with connected() as client:
        study = client.create_study(read_document(file))
    if as_json:
        print_json(study.raw)
    else:
        console.print(f"created study [bold]{study.name}[/bold] ({study.id})")


@app.command("list")
def list_studies(
    state: Annotated[str | None, typer.Option(help="ACTIVE, PAUSED, STOPPED or ARCHIVED")] = None,
    ids: Ids = False,
    as_json: Json = False,
) -> None:
    """The studies of the project, newest first; closed trials of their budget, where they have one."""
    with connected() as client:
        studies = list(client.studies(state=state))
    if as_json:
        print_json([study.raw for study in studies])
    else:
        rows = [study_row(study) for study in studies]
        print_table("studies", STUDY_COLUMNS, rows, only_wide=narrow(ids))


@app.command()
def show(study: StudyName, ids: Ids = False, as_json: Json = False) -> None:
    """One study with its counters and its best trial."""
    with connected() as client:
        found = client.study(study)
    if as_json:
        print_json(found.raw)
        return
    print_table("study", STUDY_COLUMNS, [study_row(found)], only_wide=narrow(ids))
    if found.state_reason:
        console.print(f"state: {found.state_reason}")
    if found.raw["breaker"]["open"]:
        console.print(f"[red]model bypassed:[/red] {found.raw['breaker']['reason']}")
    if found.best:
        print_table("best", TRIAL_COLUMNS, [trial_row(found.best)], only_wide=("worker",))


@app.command()
def best(study: StudyName, as_json: Json = False) -> None:
    """The best trial, or the Pareto front where there are several objectives."""
    with connected() as client:
        found = client.best(study)
        trials = [found] if found else client.pareto(study)
        of_study = client.study(study)
    if as_json:
        print_json([trial.raw for trial in trials])
    elif trials:
        rows = [trial_row(trial) for trial in trials]
        print_table("best" if found else "Pareto front", TRIAL_COLUMNS, rows, only_wide=("worker",))
    elif of_study.counts["COMPLETED"] == 0:
        console.print("no trial is completed yet")
    else:
        console.print("no completed trial meets the constraints yet")


@app.command()
def fits(
    study: StudyName,
    limit: Annotated[int, typer.Option(min=1, max=500, help="so many, newest first")] = 10,
    as_json: Json = False,
) -> None:
    """The latest fits, and what each model says about itself."""
    with connected() as client:
        found = client.fits(study, limit=limit)
    if as_json:
        print_json(found)
        return
    for fit in found:
        head = f"data {fit['data_version']}  {fit['surrogate']}  {fit['seconds']:.2f} s on {fit['device']}"
        console.print(head, highlight=False, markup=False)
        console.print(f"  {short(fit['diagnostics'])}", highlight=False, markup=False)


def _moved(study: Study, *, as_json: bool) -> None:
    if as_json:
        print_json(study.raw)
    else:
        console.print(f"{study.name} is {study.state}")


@app.command()
def pause(study: StudyName, reason: Reason = None, as_json: Json = False) -> None:
    """Give out no more trials for now."""
    with connected() as client:
        _moved(client.pause(study, reason=reason), as_json=as_json)


@app.command()
def resume(study: StudyName, reason: Reason = None, as_json: Json = False) -> None:
    """Give out trials again."""
    with connected() as client:
        _moved(client.resume(study, reason=reason), as_json=as_json)


@app.command()
def stop(study: StudyName, reason: Reason = None, as_json: Json = False) -> None:
    """End the search; running trials are told to stop."""
    with connected() as client:
        _moved(client.stop(study, reason=reason), as_json=as_json)


@app.command()
def archive(study: StudyName, reason: Reason = None, as_json: Json = False) -> None:
    """Close the study for good."""
    with connected() as client:
        _moved(client.archive(study, reason=reason), as_json=as_json)


@app.command()
def edit(
    study: StudyName,
    changes: Annotated[str, typer.Argument(help='JSON, for example \'{"stopping": {"max_trials": 200}}\'')],
    as_json: Json = False,
) -> None:
    """Widen ranges, raise budgets, change policies."""
    try:
        parsed = json.loads(changes)
    except ValueError as error:
        raise fail(f"the changes are not JSON: {error}") from error
    with connected() as client:
        _moved(client.edit(study, **parsed), as_json=as_json)


@app.command()
def branch(
    study: StudyName,
    name: Annotated[str, typer.Argument(help="name of the new study")],
    changes: Annotated[str, typer.Argument(help="JSON of the fields that differ")] = "{}",
    as_json: Json = False,
) -> None:
    """A new study from this one, with the trials that stay valid."""
    try:
        parsed = json.loads(changes)
    except ValueError as error:
        raise fail(f"the changes are not JSON: {error}") from error
    with connected() as client:
        report = client.branch(study, name, **parsed)
    if as_json:
        print_json({**report, "study": report["study"].raw})
        return
    console.print(f"created [bold]{report['study'].name}[/bold]: {report['copied']} trials copied")
    if report["left_out"]:
        rows = [[item["number"], item["reason"]] for item in report["left_out_reasons"]]
        print_table(f"{report['left_out']} left out", ("number", "reason"), rows)


@app.command()
def export(
    study: StudyName,
    form: Annotated[Literal["csv", "jsonl"], typer.Option("--format")] = "jsonl",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="a file instead of stdout")] = None,
) -> None:
    """Every closed trial, in a form that import reads."""
    with connected() as client:
        text = client.export(study, form=form)
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text)
        console.print(f"wrote {len(text.splitlines())} lines to {output}")


@app.command("import")
def import_trials(
    study: StudyName,
    file: Annotated[Path, typer.Argument(help=".csv or .jsonl", exists=True, dir_okay=False)],
    dry_run: Annotated[bool, typer.Option(help="only check")] = False,
    skip_bad_rows: Annotated[bool, typer.Option(help="import the good ones")] = False,
    as_json: Json = False,
) -> None:
    """Finished trials from a file, all or none."""
    with connected() as client:
        report = client.import_trials(study, file, dry_run=dry_run, skip_bad_rows=skip_bad_rows)
    if as_json:
        print_json(report)
        return
    verb = "would import" if dry_run else "imported"
    console.print(f"{verb} {report['imported']} trials, refused {report['refused']}")
    if report["problems"]:
        rows = [[p["row"], p["field"], p["reason"]] for p in report["problems"]]
        print_table("refused rows", ("row", "field", "reason"), rows)


@app.command()
def events(
    study: StudyName,
    after: Annotated[int, typer.Option(help="only after this id")] = 0,
    follow: Annotated[bool, typer.Option(help="go on as they come")] = False,
    as_json: Json = False,
) -> None:
    """What happened, and with --follow what happens."""
    with connected() as client:
        for event in client.events(study, after=after, follow=follow):
            details = {k: v for k, v in event.data.items() if k not in ("seq", "kind", "at", "trial_id")}
            if as_json:
                typer.echo(json.dumps(event.data))
            else:
                console.print(f"{event.data['at'][:19]} {event.kind:22} {short(details)}", highlight=False)
