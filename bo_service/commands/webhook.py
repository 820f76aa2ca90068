"""`bo webhook`: who is told when studies finish, fail or improve."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bo_service.commands.output import Ids, Json, connected, console, print_json, print_table, second

app = typer.Typer(no_args_is_help=True, help="Webhooks: tell a URL when studies finish, fail or improve.")

WebhookId = Annotated[str, typer.Argument(help="from `bo webhook list`")]


def _print_secret(made: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    console.print(f"webhook {made['id']}", highlight=False)
    console.print(f"{made['secret']}\nchecks its signatures; it is not shown again", highlight=False)


@app.command()
def create(
    url: Annotated[str, typer.Argument(help="https://...")],
    kind: Annotated[
        list[str] | None, typer.Option(help="study_finished, study_failed or new_best; all by default")
    ] = None,
    study: Annotated[str | None, typer.Option(help="of this study alone, id or name")] = None,
    form: Annotated[str, typer.Option("--format", help="json, or slack for chat services")] = "json",
    as_json: Json = False,
) -> None:
    """Make a webhook; its secret is shown this once."""
    with connected() as client:
        made = client.webhooks.create(url, kinds=kind or None, study=study, format=form)
    _print_secret(made, as_json=as_json)


@app.command("list")
def list_webhooks(as_json: Json = False) -> None:
    """The project's webhooks."""
    with connected() as client:
        found = client.webhooks.list()
    if as_json:
        print_json(found)
        return
    rows = [
        [w["url"], ", ".join(w["kinds"]), w["study_id"], w["format"], w["disabled_reason"], w["id"]]
        for w in found
    ]
    columns = ("url", "kinds", "study", "format", "disabled", "id")
    print_table("webhooks", columns, rows, only_wide=("kinds", "study", "format"))


@app.command()
def delete(webhook: WebhookId) -> None:
    """Remove a webhook and its deliveries."""
    with connected() as client:
        gone = client.webhooks.delete(webhook)
    console.print(f"removed webhook {gone['id']}", highlight=False)


@app.command()
def rotate(webhook: WebhookId, as_json: Json = False) -> None:
    """Make a new secret; for a day messages carry signatures of both."""
    with connected() as client:
        made = client.webhooks.rotate(webhook)
    _print_secret(made, as_json=as_json)


@app.command()
def enable(webhook: WebhookId) -> None:
    """Let a disabled webhook hear again."""
    with connected() as client:
        client.webhooks.enable(webhook)
    console.print(f"webhook {webhook} is enabled", highlight=False)


@app.command("test")
def send_ping(webhook: WebhookId, as_json: Json = False) -> None:
    """Send a ping; `bo webhook deliveries` says what became of it."""
    with connected() as client:
        queued = client.webhooks.test(webhook)
    if as_json:
        print_json(queued)
    else:
        console.print(f"queued delivery {queued['id']}", highlight=False)


@app.command()
def deliveries(
    webhook: WebhookId,
    state: Annotated[str | None, typer.Option(help="PENDING, DELIVERED or FAILED")] = None,
    ids: Ids = False,
    as_json: Json = False,
) -> None:
    """The messages of the last days, newest first; `bo webhook retry` wants the ids that --ids shows."""
    with connected() as client:
        found = list(client.webhooks.deliveries(webhook, state=state))
    if as_json:
        print_json(found)
        return
    rows = [
        [second(d["created_at"]), d["kind"], d["state"], d["tries"], d["last_error"] or d["status"], d["id"]]
        for d in found
    ]
    columns = ("created", "kind", "state", "tries", "answer", "id")
    # a narrow terminal has no room for both
    narrow = ("created", "answer") if ids else ("id",)
    print_table("deliveries", columns, rows, only_wide=narrow)


@app.command()
def retry(webhook: WebhookId, delivery: Annotated[str, typer.Argument(help="its id")]) -> None:
    """Send a message again now."""
    with connected() as client:
        client.webhooks.retry(webhook, delivery)
    console.print(f"queued delivery {delivery} again", highlight=False)
