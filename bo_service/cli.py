"""`bo`: the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Annotated

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

import bo_service
from bo_service.commands import archive, service, study, trial, webhook
from bo_service.commands.doctor import doctor
from bo_service.commands.first_key import bootstrap_key
from bo_service.commands.health import health
from bo_service.commands.misconfigured import misspelt, problems_of
from bo_service.commands.status import audit, status
from bo_service.domain.errors import ServiceError
from bo_service.secret_files import SecretUnreadable
from bo_service.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    help="Bayesian optimization with pluggable surrogates.",
    pretty_exceptions_enable=False,
)
app.add_typer(study.app, name="study")
app.add_typer(trial.app, name="trial")
app.add_typer(service.db, name="db")
app.add_typer(service.key, name="key")
app.add_typer(service.surrogate, name="surrogate")
app.add_typer(webhook.app, name="webhook")
app.command()(doctor)
app.command()(health)
service.key.command("bootstrap")(bootstrap_key)
app.command()(status)
app.command()(audit)
app.command()(archive.export)
app.command("import")(archive.import_)


@app.callback(invoke_without_command=True)
def main_options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    """Bayesian optimization with pluggable surrogates."""
    if version:
        typer.echo(f"bo-service {bo_service.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command()
def up(
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on; 0 takes a free one")] = 8000,
    processes: Annotated[int, typer.Option(min=1, help="HTTP processes; several need PostgreSQL")] = 1,
) -> None:
    """Start the service: migrates its database, makes a local key, and computes in a child process.

    With BO_COMPUTE=external it computes nothing: `bo relay` and `bo compute` do.
    """
    from bo_service.main import serve  # noqa: PLC0415  the other commands start faster without it

    serve(host, port, processes=processes)


PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _become(module: str, arguments: list[str], environment: Mapping[str, str] | None = None) -> None:
    """Replace this process: the workers' package stands above this one and is not imported by it."""
    sys.stdout.flush()
    command = [sys.executable, "-m", module, *arguments]
    os.execve(sys.executable, command, environment or os.environ)  # noqa: S606  no shell is wanted


@app.command(context_settings=PASSED_ON, add_help_option=False)
def work(context: typer.Context) -> None:
    """Evaluate trials: bo work --study S --objective package.module:function --slots N."""
    _become("workers.objective", context.args)


@app.command(context_settings=PASSED_ON, add_help_option=False)
def replay(context: typer.Context) -> None:
    """Compute a suggestion again from its data and say whether it is identical: bo replay SUGGESTION."""
    _become("workers.replay", context.args, Settings().compute_environment())


def _external(command: str) -> Settings:
    """The settings of a process that works beside the API. Raises: SystemExit where the API computes by itself."""
    settings = Settings()
    if settings.compute != "external":
        sys.exit(
            f"BO_COMPUTE: bo {command} belongs to a service with BO_COMPUTE=external, and here it is embedded:"
            " `bo up` computes by itself. Set BO_COMPUTE=external for `bo up` and for every process beside it"
        )
    return settings


@app.command()
def relay() -> None:
    """Send the jobs' messages and keep house, where BO_COMPUTE=external; any number may run."""
    _external("relay")
    _become("workers.relay", [])


@app.command(context_settings=PASSED_ON, add_help_option=False)
def compute(context: typer.Context) -> None:
    """Start a compute worker behind the broker: bo compute --queues cpu,llm --concurrency 2."""
    asks_for_help = {"-h", "--help"} & set(context.args)
    settings = Settings() if asks_for_help else _external("compute")
    _become("workers.compute", context.args, settings.compute_environment())


@app.command(context_settings=PASSED_ON, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Evaluate pushed trials from the broker: bo evaluate --objective package.module:function --concurrency 4."""
    Settings()  # its mistakes are told here
    _become("workers.evaluate", context.args)


def main() -> None:
    """Entry point."""
    for warning in misspelt(os.environ):
        sys.stderr.write(f"{warning}\n")
    try:
        app()
    except SecretUnreadable as error:
        sys.exit(f"a secret cannot be read: {error}")
    except (ValidationError, SettingsError) as error:
        if isinstance(error, ValidationError) and error.title != Settings.__name__:
            raise
        sys.exit("\n".join(problems_of(error)))
    except ServiceError as error:
        # such as a database that does not answer
        sys.exit(str(error))
