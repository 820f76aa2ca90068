"""The child process that computes for an embedded service: started, woken, heard and restarted."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from bo_service.domain.ids import StudyId

COMMAND: Final = (sys.executable, "-m", "workers.embedded")
"""Started by name, because this package knows nothing of the workers."""

WAKE: Final = b"wake\n"
CHANGED: Final = "changed "
RESTART_SECONDS: Final = (0.1, 0.5, 1.0, 2.0, 5.0)
"""Pauses before a start, longer while the child keeps dying young."""

STABLE_SECONDS: Final = 10.0
STOP_SECONDS: Final = 5.0

logger = logging.getLogger(__name__)


class ComputeChild:
    """One child process; a thread reads what it says and starts it again when it dies.

    Wake-ups go to its standard input, news come from its standard output; it ends when its input closes,
    so it never outlives this process, and gives back the job under way.
    """

    def __init__(self, *, on_change: Callable[[StudyId], None], environment: Mapping[str, str]) -> None:
        self._on_change = on_change
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._write_lock = threading.Lock()
        self.n_restarts = 0

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the child and the thread that watches it."""
        self._thread = threading.Thread(target=self._watch, name="compute-child", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the child: its input closes, and after a while it is killed."""
        self._stopping.set()
        process = self._process
        if process is not None:
            with self._write_lock:
                if process.stdin and not process.stdin.closed:
                    process.stdin.close()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def compute(self) -> None:
        """Tell the child that a job waits. See ports.Wakeup."""
        process = self._process
        if process is None or process.stdin is None:
            return
        with self._write_lock:
            try:
                process.stdin.write(WAKE)
                process.stdin.flush()
            except (OSError, ValueError):
                # it just died; its successor looks for jobs when it starts
                logger.debug("compute child is not listening")

    def study_changed(self, study_id: StudyId) -> None:
        """See ports.Wakeup."""
        self._on_change(study_id)

    def _watch(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            self._run_once()
            if self._stopping.is_set():
                return
            failures = 0 if time.monotonic() - started > STABLE_SECONDS else failures + 1
            pause = RESTART_SECONDS[min(failures, len(RESTART_SECONDS)) - 1] if failures else 0.0
            code = self._process.returncode if self._process else None
            logger.warning("compute child ended with %s; starting it again in %.1f s", code, pause)
            self.n_restarts += 1
            self._stopping.wait(pause)

    def _run_once(self) -> None:
        # a list of our own words, no shell
        self._process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.decode(errors="replace").strip()
            if text.startswith(CHANGED):
                self._on_change(StudyId(text.removeprefix(CHANGED)))
        self._process.wait()
