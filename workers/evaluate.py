"""`bo evaluate`: a Celery worker that evaluates pushed trials; needs broker, URL and key, no database."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from typing import Final

from bo_service.domain.spec import PushPolicy
from workers.amounts import at_least_one
from workers.slot import load_objective

ALLOWED: Final = "BO_EVALUATE"
"""Environment variable in which the worker's processes find what this command was told."""


def main(arguments: list[str] | None = None) -> int:
    """Check the objectives, then become the worker; SIGTERM lets evaluations end, the second releases their trials."""
    options = parser().parse_args(arguments)
    try:
        for name in options.objective:
            load_objective(name)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    command = worker_command(options)
    return os.execve(command[0], command, worker_environment(options))  # noqa: S606  no shell is wanted


def worker_command(options: argparse.Namespace) -> list[str]:
    """Celery's command."""
    name = options.name or f"evaluate-{os.getpid()}"
    return [
        *(sys.executable, "-m", "celery", "--quiet", "--app", "workers.evaluate_app", "worker"),
        *("--queues", ",".join(options.queues), "--concurrency", str(options.concurrency)),
        *("--hostname", f"{name}@{socket.gethostname()}"),
        *("--loglevel", "WARNING", "--without-gossip", "--without-mingle"),
    ]


def worker_environment(options: argparse.Namespace) -> dict[str, str]:
    """The environment of this process with what the worker's processes need to know."""
    told = {
        "objectives": options.objective,
        "queues": options.queues,
        "timeout": options.timeout,
        "lease_seconds": options.lease_seconds,
    }
    environment = dict(os.environ) | {ALLOWED: json.dumps(told)}
    if options.url:
        environment["BO_URL"] = options.url
    if options.key:
        environment["BO_API_KEY"] = options.key
    return environment


def _queues(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        try:
            PushPolicy(objective="a:b", slots=1, queue=name)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{name!r} is not a queue of objectives: objectives, or objectives.NAME"
            ) from None
    return names


def parser() -> argparse.ArgumentParser:
    """The options of `bo evaluate`."""
    found = argparse.ArgumentParser(
        prog="bo evaluate", description="Evaluate the trials that studies push through a broker."
    )
    found.add_argument(
        "--objective",
        action="append",
        required=True,
        help="package.module:function that messages may name; give it again for more",
    )
    found.add_argument(
        "--queues", type=_queues, default=["objectives"], help="comma-separated: objectives, objectives.NAME"
    )
    found.add_argument(
        "--concurrency", type=at_least_one, default=1, help="processes that evaluate at the same time"
    )
    found.add_argument("--timeout", type=float, help="seconds after which an evaluation is ended as failed")
    found.add_argument("--lease-seconds", type=float, help="how long a silent worker keeps its trial")
    found.add_argument("--name", help="name of the worker, unique on its host (default: from the process id)")
    found.add_argument("--url", help="the service (BO_URL)")
    found.add_argument("--key", help="the API key (BO_API_KEY)")
    return found


if __name__ == "__main__":
    sys.exit(main())
