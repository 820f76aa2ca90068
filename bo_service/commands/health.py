"""`bo health`: a cheap answer for whoever restarts processes, such as a container's health check."""

from __future__ import annotations

import socket
from typing import Annotated, Final, Literal

import httpx2
import typer

from bo_service.client import BoServiceError, Client
from bo_service.commands.output import fail
from bo_service.domain.job import ALIVE, Role
from bo_service.settings import Settings

ANSWER_SECONDS: Final = 5.0


def health(
    url: Annotated[str | None, typer.Option(help="where the service is (BO_URL)")] = None,
    process: Annotated[
        Literal["relay", "compute"] | None, typer.Option(help="look for one on this host instead")
    ] = None,
    key: Annotated[
        bool, typer.Option("--key", help="also try the API key, as a worker would use it")
    ] = False,
) -> None:
    """Status 0 where all is well, else 1 and why: the HTTP service's readiness, or a relay or compute worker here."""
    trouble = _of_process(Role(process), Settings()) if process else _of_service(url, with_key=key)
    if trouble:
        raise fail(trouble)
    typer.echo("ok")


def _of_service(url: str | None, *, with_key: bool) -> str:
    """Why the service does not serve, or does not serve this key; empty where it does."""
    try:
        client = Client(url, patience_seconds=0.0, timeout_seconds=ANSWER_SECONDS)
    except BoServiceError as error:
        return str(error)
    try:
        with client:
            # 200 is what a load balancer goes by; what is amiss beside the process stands in the answer
            answer = httpx2.get(f"{client.url}/readyz", timeout=ANSWER_SECONDS)
            if answer.status_code != 200:
                return f"{client.url}/readyz: status {answer.status_code}: {answer.text[:1000]}"
            if with_key:
                client.info()
    except (BoServiceError, httpx2.TransportError) as error:
        return f"{client.url}: {error}"
    return ""


def _of_process(role: Role, settings: Settings) -> str:
    """What troubles every process of this role on this host; empty where one is well."""
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415  the other commands start faster without them

    from bo_service.storage.engine import Transactions, open_engine  # noqa: PLC0415
    from bo_service.storage.jobs import SqlJobs  # noqa: PLC0415

    host = socket.gethostname()
    engine = open_engine(settings.resolved_database_url(), pool_size=1, statement_seconds=ANSWER_SECONDS)
    transactions = Transactions(engine)
    try:
        with transactions(read_only=True) as (connection, _):
            since = transactions.now(connection) - ALIVE
            seen = SqlJobs(connection).processes(since=since)
    except SQLAlchemyError as error:
        return f"the database does not answer: {str(error).splitlines()[0]}"
    finally:
        engine.dispose()
    here = [process for process in seen if process.role is role and process.name.endswith(f"@{host}")]
    if not here:
        return f"no {role.value} on {host} was heard of for {ALIVE.seconds} s"
    troubles = [process.trouble for process in here]
    return "" if None in troubles else "; ".join(filter(None, troubles))
