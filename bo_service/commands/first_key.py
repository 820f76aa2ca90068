"""`bo key bootstrap`: a key from whoever may write into the database, before there is any key to ask the API with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from bo_service.commands.output import Json, console, fail, print_json
from bo_service.domain.errors import ServiceError
from bo_service.domain.records import OPERATORS_PROJECT, ApiKey, Scope
from bo_service.orchestrator.manage_keys import create_key, keep_key
from bo_service.secret_files import secret_in
from bo_service.settings import Settings


def bootstrap_key(
    name: Annotated[str, typer.Argument(help="who or what it is for")],
    scope: Annotated[str, typer.Option(help="admin, editor, worker or viewer")] = "admin",
    project: Annotated[str, typer.Option(help="which project it opens")] = OPERATORS_PROJECT,
    from_file: Annotated[
        Path | None, typer.Option(help="let the key in this file be valid; nothing happens where it is")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key in the database named by BO_DATABASE_URL, without the API; it is shown this once."""
    from bo_service.api.schemas import KeyIn  # noqa: PLC0415  slow to import

    try:
        wanted = KeyIn.model_validate({"name": name, "scope": scope, "project": project})
    except ValidationError as error:
        raise fail("; ".join(f"{part['loc'][0]}: {part['msg']}" for part in error.errors())) from error
    key, text = _made(wanted.name, wanted.scope, project, from_file=from_file)
    shown = {"id": key.id, "name": key.name, "scope": key.scope.value, "project": key.project}
    if as_json:
        print_json(shown | ({"key": text} if text else {}))
    elif text:
        console.print(text, highlight=False, soft_wrap=True)
        console.print(f"{key.scope.value} key for project {key.project}; it is not shown again")
    else:
        console.print(
            f"the {key.scope.value} key {key.name} of {from_file} is valid for project {key.project}"
        )


def _made(name: str, scope: Scope, project: str, *, from_file: Path | None) -> tuple[ApiKey, str]:
    """The key, and its text where it is new and nobody has it yet. Raises: typer.Exit, the reason on stderr."""
    from bo_service.bootstrap import build_services  # noqa: PLC0415  slow to import

    settings = Settings()
    _check_database(settings)
    services = build_services(settings)
    try:
        if from_file is None:
            return create_key(name, scope, project=project, uow=services.uow)
        return keep_key(secret_in(from_file), name, scope, project=project, uow=services.uow)[0], ""
    except ServiceError as error:
        raise fail(str(error)) from error
    finally:
        services.close()


def _check_database(settings: Settings) -> None:
    """Refuse a database that is away or of another version. Raises: typer.Exit."""
    from bo_service.bootstrap import database_revision  # noqa: PLC0415

    try:
        present, newest = database_revision(settings)
    except ServiceError as error:
        raise fail(f"the database does not answer, or there is none yet: {error}") from error
    if present != newest:
        raise fail(
            f"BO_DATABASE_URL: at revision {present or 'none'}, this version needs {newest}: run `bo db upgrade` first"
        )
