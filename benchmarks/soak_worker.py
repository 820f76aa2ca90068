"""Objective workers of the soak: claim, beat, complete, and note every result the service acknowledged.

One process holds several, a thread each. It may be killed at any moment: what it notes is written line by line, so that
a result stands in the notes only if the service had said that it keeps it.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bo_service.client import (
    BoServiceError,
    Client,
    LeaseLost,
    Refused,
    StudyClosed,
    TrialClosed,
    Unreachable,
)

ABANDONED_SHARE = 0.02
"""So many trials are left without a word, as by a worker whose machine died."""

PATIENCE_SECONDS = 120.0


def result_of(parameters: dict[str, Any]) -> float:
    """The objective; its value can be computed again from the stored parameters."""
    return sum(float(value) ** 2 for value in parameters.values())


class Notes:
    """A file of JSON lines; each is one write, so that death leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def add(self, what: str, **details: Any) -> None:
        os.write(self._file, (json.dumps({"what": what, "at": time.time(), **details}) + "\n").encode())

    def timed(self, what: str, act: Callable[[], Any]) -> Any:
        """Do it, and note how many seconds it took."""
        start = time.perf_counter()
        found = act()
        self.add(what, seconds=time.perf_counter() - start)
        return found


class Worker:
    """One worker: its study is told by a file, because studies come and go."""

    def __init__(self, name: str, index: int, folder: Path, url: str, key: str, notes: Notes) -> None:
        self._name, self._index, self._folder, self._notes = name, index, folder, notes
        self._client = Client(url, key, patience_seconds=PATIENCE_SECONDS)
        self._random = random.Random(name)

    def run(self) -> None:
        """Until the file `stop` appears."""
        while not (self._folder / "stop").exists():
            try:
                self._round()
            except (LeaseLost, TrialClosed, StudyClosed) as error:
                # another attempt owns the trial; what was noted before stays true
                self._notes.add("lost", code=error.code)
            except Unreachable as error:
                self._notes.add("unreachable", detail=str(error))
            except Refused as error:
                self._notes.add("refused", status=error.status, code=error.code, detail=error.detail)
            except BoServiceError as error:
                self._notes.add("refused", status=0, code="unknown", detail=str(error))

    def _round(self) -> None:
        studies = json.loads((self._folder / "studies.json").read_text())
        study = studies[self._index % len(studies)]
        start = time.perf_counter()
        found = self._client.claim(study["id"], self._name, wait_seconds=2, lease_seconds=10)
        if not found.trials:
            self._notes.add("waited", reason=found.reason)
            time.sleep(0.2)
            return
        self._notes.add("claim", seconds=time.perf_counter() - start)
        for trial in found.trials:
            if self._random.random() < ABANDONED_SHARE:
                # whoever comes next under this name gets it back; under another it waits for the lease to end
                self._name = f"{self._name.partition('+')[0]}+{self._random.randrange(10**6)}"
                self._notes.add("abandoned", trial=trial.id)
                continue
            for _ in range(self._random.randrange(1, 4)):
                time.sleep(self._random.uniform(0.2, 1.0) * study["seconds"])
                self._notes.timed("heartbeat", lambda trial=trial: self._client.heartbeat(trial))
            value = result_of(dict(trial.parameters))
            self._notes.timed(
                "tell", lambda trial=trial, value=value: self._client.complete(trial, {"loss": value})
            )
            self._notes.add("kept", trial=trial.id, value=value)


def main() -> None:
    """Arguments: folder, url, key, name of this process, index of its first worker, number of workers."""
    folder, (url, key, name), first, n = Path(sys.argv[1]), sys.argv[2:5], int(sys.argv[5]), int(sys.argv[6])
    notes = Notes(folder / f"notes-{name}.jsonl")
    workers = [Worker(f"{name}-{i}", first + i, folder, url, key, notes) for i in range(n)]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
