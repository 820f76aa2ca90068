"""`bo compute`: compute workers behind a broker; with several devices, one worker for each."""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Final

from bo_service.domain.job import Queue
from workers.amounts import at_least_one

COMPUTED: Final = (Queue.CPU.value, Queue.GPU.value, Queue.LLM.value)
VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
DEVICE: Final = re.compile(r"cpu|cuda(:\d+)?")


def main(arguments: list[str] | None = None) -> int:
    """Run until a signal: the first lets fits under way end, the second does not wait."""
    found = parser()
    options = found.parse_args(arguments)
    try:
        devices = chosen_devices(options, n_visible=n_cuda_devices)
        commands = [(worker_command(options, device), device_environment(device)) for device in devices]
    except ValueError as error:
        found.error(str(error))
    if len(commands) == 1:
        command, environment = commands[0]
        os.execve(command[0], command, environment)  # noqa: S606  no shell is wanted
    return run_all(commands)


def chosen_devices(options: argparse.Namespace, *, n_visible: Callable[[], int]) -> list[str]:
    """The devices asked for; else all CUDA devices for the queue gpu, and BO_DEVICE ("") for the others.

    Raises: ValueError where there is no such device, or processes would share one.
    """
    devices: list[str] = options.devices or [os.environ.get("BO_DEVICE", "")]
    if devices == [""] and Queue.GPU.value in options.queues:
        devices = [f"cuda:{index}" for index in range(n_visible())]
        if not devices:
            raise ValueError(
                "argument --queues: no CUDA device is visible for gpu; --devices cpu serves it without one, slower"
            )
    if options.concurrency > 1 and any(device.startswith("cuda") for device in devices):
        raise ValueError("argument --concurrency: processes would share a GPU; leave it at 1")
    return devices


def n_cuda_devices() -> int:
    """How many CUDA devices this process sees."""
    import torch  # noqa: PLC0415  seconds, which no other queue needs

    return torch.cuda.device_count()


def run_all(workers: Sequence[tuple[list[str], dict[str, str]]]) -> int:
    """Run several workers, pass signals on to all, and end with the worst of their statuses.

    When one ends by itself the others are stopped: whoever started this process starts them all again.
    """
    processes = [subprocess.Popen(command, env=environment) for command, environment in workers]

    was_told = False

    def pass_on(number: int, _: FrameType | None) -> None:
        nonlocal was_told
        was_told = True
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    while all(process.poll() is None for process in processes):
        try:
            processes[0].wait(1.0)
        except subprocess.TimeoutExpired:
            continue
    if not was_told:
        # a second signal would end the fits that the others are finishing
        pass_on(signal.SIGTERM, None)
    return max(abs(process.wait()) for process in processes)


def worker_command(options: argparse.Namespace, device: str) -> list[str]:
    """Celery's command for one worker."""
    name = options.name or f"compute-{os.getpid()}"
    suffix = f"-{device.replace(':', '')}" if device else ""
    return [
        *(sys.executable, "-m", "celery", "--quiet", "--app", "workers.celery_app", "worker"),
        *("--queues", ",".join(options.queues), "--concurrency", str(options.concurrency)),
        *("--hostname", f"{name}{suffix}@{socket.gethostname()}"),
        *("--loglevel", "WARNING", "--without-gossip", "--without-mingle"),
    ]


def device_environment(device: str) -> dict[str, str]:
    """The environment of a worker that sees one device and calls it by its first name.

    Indices count among the devices this process was given. Raises: ValueError where it was given fewer.
    """
    environment = dict(os.environ)
    kind, _, index = device.partition(":")
    if device:
        environment["BO_DEVICE"] = kind
    if index:
        given = environment.get(VISIBLE)
        names = given.split(",") if given else None
        if names is not None and int(index) >= len(names):
            raise ValueError(f"argument --devices: {device} is not among {VISIBLE}={given}")
        environment[VISIBLE] = names[int(index)].strip() if names is not None else index
    return environment


def _queues(text: str) -> list[str]:
    return _listed(text, lambda name: name in COMPUTED, f"a queue: {', '.join(COMPUTED)}")


def _devices(text: str) -> list[str]:
    return _listed(text, lambda name: bool(DEVICE.fullmatch(name)), "a device: cpu, cuda, or cuda:0,cuda:1")


def _listed(text: str, is_known: Callable[[str], bool], what: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if strangers := [name for name in names if not is_known(name)]:
        raise argparse.ArgumentTypeError(f"{', '.join(map(repr, strangers))} is not {what}")
    return names


def parser() -> argparse.ArgumentParser:
    """The options of `bo compute`."""
    found = argparse.ArgumentParser(prog="bo compute", description="Fit models for a service with a broker.")
    found.add_argument(
        "--queues", type=_queues, default=["cpu"], help="comma-separated: cpu, gpu, llm (default: cpu)"
    )
    found.add_argument(
        "--devices",
        type=_devices,
        help="a worker for each: cpu, cuda, or cuda:0,cuda:1 (default: BO_DEVICE, else all GPUs for the queue gpu)",
    )
    found.add_argument(
        "--concurrency",
        type=at_least_one,
        default=1,
        help="processes of each worker; keep 1 on a GPU (default: 1)",
    )
    found.add_argument("--name", help="name of the worker, unique on its host (default: from the process id)")
    return found


if __name__ == "__main__":
    sys.exit(main())
