"""`bo db`, `bo key`, `bo surrogate`: the service itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from bo_service.commands.output import Json, connected, console, fail, minute, print_json, print_table

db = typer.Typer(no_args_is_help=True, help="The database named by BO_DATABASE_URL, or the embedded one.")
key = typer.Typer(no_args_is_help=True, help="API keys of the project.")
surrogate = typer.Typer(no_args_is_help=True, help="The installed surrogates.")


@db.command()
def upgrade(revision: Annotated[str, typer.Argument(help="a revision, or head")] = "head") -> None:
    """Create or migrate the tables."""
    from alembic.util import CommandError  # noqa: PLC0415

    from bo_service.bootstrap import database_revision, upgrade_database  # noqa: PLC0415  slow to import
    from bo_service.settings import Settings  # noqa: PLC0415

    settings = Settings()
    try:
        upgrade_database(settings, revision)
    except CommandError as error:
        raise fail(f"{revision}: {error}") from error
    console.print(f"database at revision {database_revision(settings)[0]}")


@db.command()
def current(as_json: Json = False) -> None:
    """The database's revision, and the newest this version has."""
    from bo_service.bootstrap import database_revision  # noqa: PLC0415
    from bo_service.settings import Settings  # noqa: PLC0415

    settings = Settings()
    present, newest = database_revision(settings)
    if as_json:
        print_json({"current": present, "head": newest})
    else:
        console.print(f"current {present or 'none'}, newest {newest}")


@db.command()
def check(as_json: Json = False) -> None:
    """Walk the whole database and say which of its rules are broken; status 1 if any is."""
    from bo_service.bootstrap import broken_invariants, build_services, database_revision  # noqa: PLC0415
    from bo_service.settings import Settings  # noqa: PLC0415

    settings = Settings()
    present, newest = database_revision(settings)
    if present != newest:
        raise fail(
            f"the database is at revision {present or 'none'}, this version at {newest}: run `bo db upgrade` first"
        )
    services = build_services(settings)
    broken = broken_invariants(services)
    services.close()
    if as_json:
        print_json({"broken": broken})
    else:
        console.print("\n".join(broken) or "every rule holds")
    if broken:
        raise typer.Exit(1)


@key.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="who or what it is for")],
    scope: Annotated[str, typer.Option(help="admin, editor, worker or viewer")] = "worker",
    project: Annotated[str | None, typer.Option(help="another project than this key's")] = None,
    expires_in: Annotated[float | None, typer.Option(help="seconds it works; for ever by default")] = None,
    as_json: Json = False,
) -> None:
    """Make a key; it is shown this once."""
    with connected() as client:
        made = client.create_key(name, scope, project=project, expires_in_seconds=expires_in)
    _show_key(made, as_json=as_json)


def _show_key(made: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    end = f", until {made['expires_at']}" if made["expires_at"] else ""
    console.print(
        f"{made['key']}\n{made['scope']} key for project {made['project']}{end}; it is not shown again",
        highlight=False,
        soft_wrap=True,
    )


@key.command()
def rotate(
    key_id: Annotated[str, typer.Argument(help="from `bo key list`")],
    grace: Annotated[float, typer.Option(help="seconds the old key still works")] = 3600.0,
    as_json: Json = False,
) -> None:
    """Make a key in another one's place."""
    with connected() as client:
        made = client.rotate_key(key_id, grace_seconds=grace)
    _show_key(made, as_json=as_json)


@key.command("list")
def list_keys(as_json: Json = False) -> None:
    """The project's keys."""
    with connected() as client:
        keys = client.keys()
    if as_json:
        print_json(keys)
    else:
        rows = [
            (
                k["id"],
                k["name"],
                k["scope"],
                minute(k["created_at"]),
                minute(min(filter(None, (k["revoked_at"], k["expires_at"])), default=None)),
            )
            for k in keys
        ]
        print_table("keys", ("id", "name", "scope", "created", "ends"), rows, only_wide=("created",))


@key.command()
def revoke(key_id: Annotated[str, typer.Argument(help="from `bo key list`")]) -> None:
    """End a key."""
    with connected() as client:
        gone = client.revoke_key(key_id)
    console.print(f"revoked {gone['name']} ({gone['prefix']}...)")


@surrogate.command("list")
def list_surrogates(as_json: Json = False) -> None:
    """Every installed surrogate."""
    with connected() as client:
        found = client.surrogates()
    if as_json:
        print_json(found)
    else:
        rows = [[s["name"], s["abilities"]["cost_class"], s["summary"]] for s in found]
        print_table("surrogates", ("name", "cost", "summary"), rows)


@surrogate.command("show")
def show_surrogate(
    name: Annotated[str, typer.Argument(help="as `bo surrogate list` has it")], as_json: Json = False
) -> None:
    """One surrogate with its options."""
    with connected() as client:
        found = {item["name"]: item for item in client.surrogates()}
    if name not in found:
        raise fail(f"no surrogate named {name!r}; installed: {', '.join(sorted(found))}")
    chosen = found[name]
    if as_json:
        print_json(chosen)
        return
    console.print(f"{name}: {chosen['summary']}", highlight=False)
    rows = [
        (option, json.dumps(schema.get("default")), " ".join(schema.get("description", "").split()))
        for option, schema in chosen["options_schema"].get("properties", {}).items()
    ]
    print_table("options", ("option", "default", "summary"), rows)
