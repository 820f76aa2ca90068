"""`bo trial`: list, show, add, steer, and work by hand."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from bo_service.client import ClaimedTrial, Client, Trial
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
    second,
    short,
    trial_row,
)

app = typer.Typer(no_args_is_help=True, help="Trials: look, add, steer, work by hand.")

StudyName = Annotated[str, typer.Argument(help="study, id or name")]
TrialId = Annotated[str, typer.Argument(help="trial id")]
Lease = Annotated[str, typer.Option(help="the lease token from claim")]
Parameters = Annotated[str, typer.Argument(help="parameters as JSON")]


def parsed(text: str, what: str) -> dict[str, Any]:
    """A JSON object from the command line."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise fail(f"{what}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise fail(f"{what}: not a JSON object")
    return content


def _print(trial: Trial, *, as_json: bool) -> None:
    if as_json:
        print_json(trial.raw)
    else:
        row = [*trial_row(trial), trial.id]
        print_table("trial", (*TRIAL_COLUMNS, "id"), [row], only_wide=("worker", "id"))


@app.command("list")
def list_trials(
    study: StudyName,
    state: Annotated[list[str] | None, typer.Option(help="only these states")] = None,
    ids: Ids = False,
    as_json: Json = False,
) -> None:
    """The trials of a study by number."""
    with connected() as client:
        trials = list(client.trials(study, state=state))
    if as_json:
        print_json([trial.raw for trial in trials])
    else:
        rows = [[*trial_row(trial), trial.id] for trial in trials]
        print_table("trials", (*TRIAL_COLUMNS, "id"), rows, only_wide=hidden(ids, "worker"))


@app.command()
def show(
    trial: Annotated[str, typer.Argument(help="its id, or the study it belongs to")],
    number: Annotated[int | None, typer.Argument(min=1, help="its number, after the study")] = None,
    as_json: Json = False,
) -> None:
    """One trial with its attempts and observations: bo trial show ID, or bo trial show STUDY NUMBER."""
    if number is None and trial.isdigit():
        raise fail(f"which study? bo trial show STUDY {trial}")
    with connected() as client:
        found = client.trial(trial) if number is None else client.trial_numbered(trial, number)
    _print(found, as_json=as_json)
    if as_json:
        return
    console.print(f"id {found.id}", highlight=False)
    console.print(f"made by {short(found.provenance)}", highlight=False)
    attempts = [
        [a["number"], a["worker"], second(a["started_at"]), second(a["ended_at"]), a["exit"]]
        for a in found.raw["attempts_log"]
    ]
    columns = ("number", "worker", "started", "ended", "exit")
    print_table("attempts", columns, attempts, only_wide=("ended",))
    if found.raw["observations"]:
        rows = [
            [o["step"], o["metric"], short(o["value"]), o["sem"] and short(o["sem"])]
            for o in found.raw["observations"]
        ]
        print_table("observations", ("step", "metric", "value", "sem"), rows)
    if found.reason:
        console.print(found.reason, markup=False, highlight=False)


@app.command()
def attach(
    study: StudyName,
    parameters: Parameters,
    metrics: Annotated[str, typer.Argument(help="metrics as JSON")],
    as_json: Json = False,
) -> None:
    """Record a trial that was evaluated elsewhere."""
    with connected() as client:
        found = client.attach(study, parsed(parameters, "parameters"), parsed(metrics, "metrics"))
    _print(found, as_json=as_json)


@app.command()
def enqueue(study: StudyName, parameters: Parameters, as_json: Json = False) -> None:
    """Have a configuration evaluated next."""
    with connected() as client:
        suggestion = client.enqueue(study, parsed(parameters, "parameters"))
    if as_json:
        print_json(suggestion.raw)
    else:
        console.print(f"enqueued {suggestion.id}")


@app.command()
def claim(
    study: StudyName,
    worker: Annotated[str, typer.Option(help="your name")] = "by hand",
    count: Annotated[int, typer.Option(help="how many")] = 1,
    wait: Annotated[float, typer.Option(help="seconds to wait for a suggestion")] = 10.0,
    lease_seconds: Annotated[float, typer.Option(help="time until the trial goes to somebody else")] = 3600.0,
    as_json: Json = False,
) -> None:
    """Take trials to evaluate by hand; note the lease."""
    with connected() as client:
        claims = client.claim(study, worker, count=count, wait_seconds=wait, lease_seconds=lease_seconds)
    if as_json:
        print_json({"trials": [trial.raw for trial in claims.trials], "reason": claims.reason})
        return
    if not claims.trials:
        raise fail(f"no trial: {claims.reason}")
    for trial in claims.trials:
        # whole, to be copied
        console.print(f"trial {trial.number}: {short(trial.parameters)}", markup=False, highlight=False)
        console.print(f"  id    {trial.id}\n  lease {trial.lease}", highlight=False, soft_wrap=True)


def _held(client: Client, trial: str, lease: str) -> ClaimedTrial:
    raw = {**client.trial(trial).raw, "lease": lease, "lease_seconds": 0.0, "attempt": 0}
    return ClaimedTrial.from_json(raw)


@app.command()
def complete(
    trial: TrialId,
    metrics: Annotated[str, typer.Argument(help="metrics as JSON")],
    lease: Lease,
    cost: Annotated[float | None, typer.Option(help="what it cost")] = None,
    as_json: Json = False,
) -> None:
    """Close a claimed trial with its result."""
    with connected() as client:
        found = client.complete(_held(client, trial, lease), parsed(metrics, "metrics"), cost=cost)
    _print(found, as_json=as_json)


@app.command("fail")
def fail_trial(
    trial: TrialId,
    lease: Lease,
    reason: Annotated[str, typer.Option(help="what went wrong")] = "by hand",
    as_json: Json = False,
) -> None:
    """Close a claimed trial without a result."""
    with connected() as client:
        found = client.fail(_held(client, trial, lease), reason)
    _print(found, as_json=as_json)


@app.command()
def release(trial: TrialId, lease: Lease, as_json: Json = False) -> None:
    """Give a claimed trial back."""
    with connected() as client:
        found = client.release(_held(client, trial, lease))
    _print(found, as_json=as_json)


@app.command()
def cancel(trial: TrialId, as_json: Json = False) -> None:
    """Ask a running trial to stop; close a waiting one."""
    with connected() as client:
        found = client.cancel(trial)
    _print(found, as_json=as_json)


@app.command()
def abandon(trial: TrialId, as_json: Json = False) -> None:
    """Close an open trial for good, whoever holds it."""
    with connected() as client:
        found = client.abandon(trial)
    _print(found, as_json=as_json)
