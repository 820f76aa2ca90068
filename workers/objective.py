"""The objective worker: a supervisor over slot processes that evaluate a function or a command."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final

from bo_service.client import BoServiceError, Client, Study
from bo_service.client.models import ClaimedTrial
from bo_service.domain.spec import StudySpec
from workers.amounts import at_least_one
from workers.command import unknown_placeholders
from workers.slot import EXIT_REFUSED, EXIT_STUDY_OVER, EXIT_UNREACHABLE, SlotConfig, load_objective
from workers.stopping import on_stop

STOP_SECONDS: Final = 15.0
"""After SIGTERM, slots have this long to release their trials."""

LAST_PATIENCE_SECONDS: Final = 2.0
"""So long each call waits for a service that is away, once this process was told to stop."""

RESTART_SECONDS: Final = 1.0
MAX_QUICK_DEATHS: Final = 5
"""A slot that dies this often without finishing a trial is not started again."""

POLL_SECONDS: Final = 0.1

logger = logging.getLogger("bo work")


@dataclass(slots=True)
class SlotProcess:
    """A slot as its supervisor sees it."""

    config: SlotConfig
    process: subprocess.Popen[bytes] | None = None
    trial_id: str | None = None
    number: int | None = None
    lease: str | None = None
    command_group: int | None = None
    started_at: float = 0.0
    n_quick_deaths: int = 0
    n_done: int = 0
    is_over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, environment: dict[str, str]) -> None:
        """Start the process in a group of its own, with a pipe for what it tells."""
        read, write = os.pipe()
        config = SlotConfig(**{**json.loads(self.config.as_json()), "report_to": write})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workers.slot", config.as_json()],
            pass_fds=(write,),
            env=environment,
            process_group=0,
        )
        os.close(write)
        threading.Thread(target=self._listen, args=(read,), daemon=True).start()

    def _listen(self, descriptor: int) -> None:
        with os.fdopen(descriptor) as lines:
            for line in lines:
                self._heard(json.loads(line))

    def _heard(self, message: dict[str, Any]) -> None:
        with self.lock:
            if message["what"] == "started":
                self.trial_id, self.number, self.lease = message["trial"], message["number"], message["lease"]
                self.started_at = time.monotonic()
            elif message["what"] == "command":
                self.command_group = message["group"]
            elif message["what"] == "evaluated":
                # its result may wait for a service that is away
                self.started_at, self.command_group = math.inf, None
            elif message["what"] == "ended":
                logger.info("%s: trial %d %s", self.config.worker, message["number"], message["state"])
                self.trial_id = self.lease = self.command_group = None
                self.n_done += 1
                self.n_quick_deaths = 0
            elif message["what"] == "over":
                logger.info("%s ends: %s", self.config.worker, message["reason"])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the slot; SIGKILL also to its group and its command, which may outlive it."""
        if self.process is None:
            return
        is_alive = self.process.poll() is None
        if number is not signal.SIGKILL:
            if is_alive:
                self.process.send_signal(number)
            return
        for group in (self.process.pid if is_alive else None, self.command_group):
            if group is not None:
                try:
                    os.killpg(group, signal.SIGKILL)
                except ProcessLookupError:
                    continue


class Supervisor:
    """Keeps the slots running; ends hanging objectives; releases trials when told to stop."""

    def __init__(self, slots: list[SlotProcess], *, timeout_seconds: float | None, client: Client) -> None:
        self._slots = slots
        self._timeout_seconds = timeout_seconds
        self._client = client
        self._stopping = threading.Event()
        self._environment = dict(os.environ) | {"BO_URL": client.url, "BO_API_KEY": client.key or ""}

    def run(self) -> int:
        """Until every slot is over, or a signal; the exit status."""
        on_stop(self._told_to_stop)
        for slot in self._slots:
            slot.start(self._environment)
        while not self._stopping.is_set() and not all(slot.is_over for slot in self._slots):
            for slot in self._slots:
                if not slot.is_over:
                    self._look_after(slot)
            self._stopping.wait(POLL_SECONDS)
        if self._stopping.is_set():
            self._stop()
        return 1 if any(self._gave_up(slot) for slot in self._slots) and not self._stopping.is_set() else 0

    @staticmethod
    def _gave_up(slot: SlotProcess) -> bool:
        return slot.process is not None and slot.process.returncode not in (EXIT_STUDY_OVER, None)

    def _told_to_stop(self) -> None:
        if self._stopping.is_set():
            logger.info("told again: ending the slots at once")
            for slot in self._slots:
                slot.signal(signal.SIGKILL)
        logger.info("told to stop: releasing trials")
        self._stopping.set()

    def _stop(self) -> None:
        for slot in self._slots:
            slot.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for slot in self._slots:
            if slot.process is None:
                continue
            try:
                slot.process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                logger.warning("%s did not stop in time", slot.config.worker)
            slot.signal(signal.SIGKILL)
        with Client(self._client.url, self._client.key, patience_seconds=LAST_PATIENCE_SECONDS) as client:
            self._release_all(client)

    def _release_all(self, client: Client) -> None:
        """Give back what the slots told of, and what they were given while they were told to stop."""
        deadline = time.monotonic() + STOP_SECONDS
        for slot in self._slots:
            if time.monotonic() > deadline:
                logger.warning("the service does not answer; leases not given back end by themselves")
                return
            self._close(slot, release=True, reason="", client=client)
        # an answer may have been on its way when a slot hung up
        names = {slot.config.worker for slot in self._slots}
        try:
            for trial in client.trials(self._slots[0].config.study, state="RUNNING"):
                if trial.worker in names:
                    for claimed in client.claim(trial.study_id, trial.worker).trials:
                        client.release(claimed)
        except BoServiceError as error:
            logger.warning("trials may be left until their leases end: %s", error)

    def _look_after(self, slot: SlotProcess) -> None:
        assert slot.process is not None
        with slot.lock:
            hanging = (
                self._timeout_seconds is not None
                and slot.trial_id is not None
                and time.monotonic() - slot.started_at > self._timeout_seconds
            )
        if hanging:
            logger.warning("%s: trial %s passed %g s", slot.config.worker, slot.number, self._timeout_seconds)
            slot.signal(signal.SIGKILL)
            slot.process.wait()
            self._close(slot, reason=f"timeout: no result after {self._timeout_seconds:g} s", timed_out=True)
            slot.start(self._environment)
            return
        code = slot.process.poll()
        if code is None:
            return
        if code in (EXIT_STUDY_OVER, EXIT_REFUSED):
            slot.is_over = True
            return
        self._revive(slot, code)

    def _revive(self, slot: SlotProcess, code: int) -> None:
        """Close the trial of a slot that died, and start it again unless that is hopeless."""
        how = f"signal {-code}" if code < 0 else f"status {code}"
        logger.warning("%s died by %s", slot.config.worker, how)
        slot.signal(signal.SIGKILL)
        # a slot that found no service had nothing to say against the trial
        self._close(
            slot, reason=f"the process of the objective died by {how}", release=code == EXIT_UNREACHABLE
        )
        slot.n_quick_deaths += 1
        if slot.n_quick_deaths >= MAX_QUICK_DEATHS:
            logger.error(
                "%s died %d times without finishing a trial", slot.config.worker, slot.n_quick_deaths
            )
            slot.is_over = True
            return
        self._stopping.wait(RESTART_SECONDS)
        if not self._stopping.is_set():
            slot.start(self._environment)

    def _close(
        self,
        slot: SlotProcess,
        *,
        reason: str,
        timed_out: bool = False,
        release: bool = False,
        client: Client | None = None,
    ) -> None:
        """Speak for a slot that no longer can; a death may be retried, a timeout only by the study's policy."""
        client = client or self._client
        with slot.lock:
            trial_id, lease = slot.trial_id, slot.lease
            slot.trial_id = slot.lease = slot.command_group = None
        if trial_id is None or lease is None:
            return
        try:
            held = self._held(trial_id, lease, client)
            if release:
                client.release(held)
            else:
                client.fail(
                    held, reason, exit="timeout" if timed_out else "error", retry=None if timed_out else True
                )
        except BoServiceError as error:
            logger.warning("trial %s was closed otherwise: %s", trial_id, error)

    @staticmethod
    def _held(trial_id: str, lease: str, client: Client) -> ClaimedTrial:
        raw = dict(client.trial(trial_id).raw) | {"lease": lease, "lease_seconds": 60.0, "attempt": 0}
        return ClaimedTrial.from_json(raw)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `bo work`."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        client = Client(options.url, options.key)
    except BoServiceError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    with client:
        try:
            study = client.study(options.study)
            check_objective(options, study)
        except (BoServiceError, ValueError) as error:
            sys.stderr.write(f"{error}\n")
            return 2
        name = options.name or f"{socket.gethostname()}:{os.getpid()}"
        slots = [SlotProcess(_slot_config(options, study, f"{name}/{i}")) for i in range(options.slots)]
        return Supervisor(slots, timeout_seconds=options.timeout, client=client).run()


def check_objective(options: argparse.Namespace, study: Study) -> None:
    """Find mistakes before anything is claimed. Raises: ValueError."""
    if options.command is None:
        load_objective(options.objective)
        return
    spec = StudySpec.model_validate(study.spec)
    shape = {p.name: {c.name: 0.0 for c in getattr(p, "components", ())} or 0.0 for p in spec.parameters}
    unknown = unknown_placeholders(options.command, shape)
    if unknown:
        shares = (
            f"{name}.{share}" for name, found in shape.items() if isinstance(found, dict) for share in found
        )
        known = ", ".join(f"{{{name}}}" for name in (*shape, *shares, "trial.number", "trial.id"))
        raise ValueError(
            f"the command names {', '.join(unknown)}, which the study does not have; known: {known}"
        )


def _slot_config(options: argparse.Namespace, study: Study, worker: str) -> SlotConfig:
    return SlotConfig(
        study=study.id,
        worker=worker,
        objective=options.objective,
        command=options.command,
        max_trials=options.max_trials,
        idle_exit_seconds=options.idle_exit,
        lease_seconds=options.lease_seconds,
        report_to=-1,
    )


def parser() -> argparse.ArgumentParser:
    """The options of `bo work`."""
    found = argparse.ArgumentParser(prog="bo work", description="Evaluate trials of a study.")
    found.add_argument("--study", required=True, help="id or name")
    what = found.add_mutually_exclusive_group(required=True)
    what.add_argument("--objective", help="package.module:function, called with a trial handle")
    what.add_argument(
        "--command", help="a command with {parameter} placeholders; its last JSON line is the result"
    )
    found.add_argument(
        "--slots", type=at_least_one, default=1, help="processes that evaluate at the same time"
    )
    found.add_argument("--timeout", type=float, help="seconds after which an evaluation is ended as failed")
    found.add_argument("--max-trials", type=at_least_one, help="trials each slot evaluates before it ends")
    found.add_argument(
        "--idle-exit",
        type=float,
        help="end after so many seconds without work; a suggestion that is being computed is waited for, ten minutes",
    )
    found.add_argument("--lease-seconds", type=float, help="how long a silent worker keeps its trial")
    found.add_argument("--name", help="the worker's name; a restart under it takes its open trials back")
    found.add_argument("--url", help="the service (BO_URL)")
    found.add_argument("--key", help="the API key (BO_API_KEY)")
    return found


if __name__ == "__main__":
    sys.exit(main())
