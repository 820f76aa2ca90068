"""An objective that is a shell command: placeholders filled without a shell, the last JSON line is the result."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final

from bo_service.client import Infeasible, TrialHandle

PLACEHOLDER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_.]*)\}")
REPORT: Final = "bo-report "
STDERR_TAIL: Final = 16_384
TERMINATE_SECONDS: Final = 10.0
STOP_POLL_SECONDS: Final = 0.5


class CommandFailed(Exception):
    """The command ended with an error, or without a result."""


def unknown_placeholders(template: str, parameters: Mapping[str, Any]) -> list[str]:
    """Placeholders that no parameter fills; `parameters` is any full configuration, or name -> components."""
    known = {"trial.number", "trial.id"} | set(parameters)
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            known |= {f"{name}.{component}" for component in value}
    return [name for name in PLACEHOLDER.findall(template) if name not in known]


def filled(template: str, handle: TrialHandle) -> list[str]:
    """The command's arguments: each word of the template with its placeholders replaced, inactive ones empty."""
    values: dict[str, str] = {"trial.number": str(handle.number), "trial.id": handle.id}
    for name, value in handle.parameters.items():
        values[name] = _text(value)
        if isinstance(value, Mapping):
            values |= {f"{name}.{component}": repr(share) for component, share in value.items()}
    return [PLACEHOLDER.sub(lambda match: values.get(match[1], ""), word) for word in shlex.split(template)]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, Mapping) else str(value)


@dataclass(frozen=True, slots=True)
class CommandObjective:
    """Runs the command for a trial, in a process group of its own.

    The environment holds BO_TRIAL_ID, BO_TRIAL_NUMBER and BO_PARAMETERS (JSON). Lines of standard output that
    start with `bo-report` carry intermediate values; the last line that is a JSON object is the result.
    """

    template: str
    on_start: Callable[[int], None]
    """Told the process group, so that a supervisor can end it."""

    def __call__(self, handle: TrialHandle) -> dict[str, Any]:
        """Raises: CommandFailed, Infeasible."""
        environment = os.environ | {
            "BO_TRIAL_ID": handle.id,
            "BO_TRIAL_NUMBER": str(handle.number),
            "BO_PARAMETERS": json.dumps(handle.parameters),
        }
        process = subprocess.Popen(
            filled(self.template, handle),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            errors="replace",
            process_group=0,
        )
        self.on_start(process.pid)
        tail: deque[str] = deque(maxlen=400)
        assert process.stdout is not None
        assert process.stderr is not None
        errors = threading.Thread(target=_keep_tail, args=(process.stderr, tail), daemon=True)
        stopper = threading.Thread(target=_stop_when_asked, args=(process, handle), daemon=True)
        errors.start()
        stopper.start()
        try:
            last = _read_output(process.stdout, handle)
            code = process.wait()
        finally:
            _end(process)
        errors.join(5.0)
        if code != 0 and not (handle.should_stop() and last is not None):
            raise CommandFailed(f"exit status {code}; the end of stderr:\n{''.join(tail)[-STDERR_TAIL:]}")
        return _result(last, handle)


def _keep_tail(stream: IO[str], tail: deque[str]) -> None:
    for line in stream:
        tail.append(line[:2000])
        sys.stderr.write(line)


def _read_output(stream: IO[str], handle: TrialHandle) -> dict[str, Any] | None:
    """Pass the output on, record reports, and keep the last JSON object."""
    last: dict[str, Any] | None = None
    for line in stream:
        text = line.strip()
        if text.startswith(REPORT):
            found = _object(text.removeprefix(REPORT))
            if found is not None and isinstance(found.get("step"), int):
                handle.report(found.pop("step"), **found)
            continue
        sys.stdout.write(line)
        last = _object(text) or last
    return last


def _object(text: str) -> dict[str, Any] | None:
    if not (text.startswith("{") and text.endswith("}")):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _result(last: dict[str, Any] | None, handle: TrialHandle) -> dict[str, Any]:
    if last is None:
        raise CommandFailed(
            'no JSON object on standard output; print one like {"loss": 0.3} as the last line'
        )
    if "infeasible" in last:
        raise Infeasible(str(last["infeasible"]))
    if "cost" in last and "metrics" in last:
        handle.cost(float(last["cost"]))
    metrics = last.get("metrics", last)
    return dict(metrics)


def _stop_when_asked(process: subprocess.Popen[str], handle: TrialHandle) -> None:
    while process.poll() is None:
        if handle.should_stop():
            _end(process)
            return
        threading.Event().wait(STOP_POLL_SECONDS)


def _end(process: subprocess.Popen[str]) -> None:
    """SIGTERM to the command's group, SIGKILL if that does not help."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(TERMINATE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
