"""One study of 100,000 imported trials: what every call takes beside the same study when it was small, and the memory.

On SQLite, or PostgreSQL with `--postgres`. Claims take suggestions that lie ready. Beside the small study: claim, tell,
best, a page, a page from the middle, a page of changes. Then alone: every page by cursor and by time of change, export
as CSV and JSON lines, the event stream from the start and resumed in the middle, and the Pareto front of a second study
with two objectives. The memory of the HTTP process is sampled all the while: reading everything must not make it hold
everything.
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
from service import percentile, running_postgres, running_service

from bo_service.bootstrap import build_services
from bo_service.client import Client
from bo_service.domain.records import EventKind
from bo_service.settings import Settings
from bo_service.storage.tables import EventRow, table_of

PARAMETERS = [{"type": "float", "name": f"x{i}", "low": 0.0, "high": 1.0} for i in range(4)]
GROWTH_MEGABYTES = 64.0
"""Reading may leave this much more in the process than was there before: pages, buffers and a fragmented heap."""


def memory_megabytes(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


@contextmanager
def watched(pid: int) -> Iterator[list[float]]:
    """Memory of the process meanwhile, twenty times a second; the first value is from before."""
    seen, done = [memory_megabytes(pid)], threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            seen.append(memory_megabytes(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def rows(n: int, metrics: tuple[str, ...] = ("loss",)) -> list[dict[str, object]]:
    """Finished trials to import."""
    draw = random.Random(0)
    return [
        {
            "parameters": {f"x{i}": draw.random() for i in range(4)},
            "metrics": {name: 1 + draw.random() for name in metrics},
        }
        for _ in range(n)
    ]


def measure(client: Client, study: str, n: int) -> dict[str, list[float]]:
    """Seconds of n calls of each kind."""
    names = ("claim", "tell", "best", "page", "page from the middle", "page of changes")
    times: dict[str, list[float]] = {name: [] for name in names}
    get, path = client._http.json, f"/v1/studies/{study}/trials"
    middle = cursor_in_the_middle(client, study)

    def clock(name: str, act: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        found = act()
        times[name].append(time.perf_counter() - start)
        return found

    for i in range(n):
        found = clock("claim", lambda: client.claim(study, "w", wait_seconds=10))
        clock("tell", lambda trial=found.trials[0]: client.complete(trial, {"loss": 2.0}))
        if i % 4 == 0:
            since = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
            clock("best", lambda: client.best(study))
            clock("page", lambda: get("GET", path, params={"limit": 100}))
            clock(
                "page from the middle",
                lambda: get("GET", path, params={"limit": 100, "cursor": middle}),
            )
            clock(
                "page of changes",
                lambda since=since: get("GET", path, params={"limit": 100, "updated_since": since}),
            )
    return times


def cursor_in_the_middle(client: Client, study: str) -> str:
    """Where half of the trials are behind; only reading leads there, since cursors are the service's own."""
    half = client.study(study).n_trials // 2
    limit = min(half, 1000)
    cursor: str | None = None
    for _ in range(half // limit):
        params = {"limit": limit, **({"cursor": cursor} if cursor else {})}
        cursor = client._http.json("GET", f"/v1/studies/{study}/trials", params=params)["next_cursor"]
    assert cursor is not None
    return cursor


def grow(client: Client, study: str, to: int, metrics: tuple[str, ...] = ("loss",)) -> None:
    """Import until the study has so many trials; says how long it took."""
    missing, start = to - client.study(study).n_trials, time.perf_counter()
    for offset in range(0, missing, 10_000):
        client.import_trials(study, rows(min(10_000, missing - offset), metrics))
    print(f"imported {missing} trials in {time.perf_counter() - start:.1f} s, by 10,000")


def log_events(settings: Settings, study: str, n: int) -> None:
    """As many events as a study of n evaluated trials has; imported ones leave a single event."""
    services, at = build_services(settings), datetime.now(UTC)
    events = [
        {"study_id": study, "kind": kind, "payload": {"number": i, "worker": "w", "attempt": 1}, "at": at}
        for i in range(n // 2)
        for kind in (EventKind.TRIAL_STARTED.value, EventKind.TRIAL_CLOSED.value)
    ]
    with services.transactions(read_only=False) as (connection, commit):
        for offset in range(0, len(events), 10_000):
            connection.execute(table_of(EventRow).insert(), events[offset : offset + 10_000])
        commit()
    services.close()


def analyze(database_url: str) -> None:
    """Let PostgreSQL see how large the tables have become, as its autovacuum does within a minute of an import.

    Until then a page from the middle takes 30 ms instead of 8: without statistics the planner sorts half the study.
    """
    import psycopg

    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("ANALYZE")


class Reader:
    """Reads everything there is, in every way, and says what it took."""

    def __init__(self, client: Client, study: str, pid: int) -> None:
        self._client, self._study, self._pid = client, study, pid
        self.growth: list[float] = []

    def read(self, name: str, act: Callable[[], tuple[int, str]]) -> None:
        """Time and memory of one way; `act` says how many of what it read."""
        with watched(self._pid) as seen:
            start = time.perf_counter()
            n, what = act()
            seconds = time.perf_counter() - start
        self.growth.append(max(seen) - seen[0])
        print(
            f"{name:32} {seconds:6.1f} s  {n:9,} {what} ({n / seconds:9,.0f}/s)  "
            f"HTTP process {seen[0]:.0f} MB, at most {max(seen):.0f} MB",
            flush=True,
        )

    def pages(self, **params: Any) -> tuple[int, str]:
        get, path = self._client._http.json, f"/v1/studies/{self._study}/trials"
        n, cursor = 0, None
        while True:
            page = get(
                "GET", path, params={"limit": 1000, **params, **({"cursor": cursor} if cursor else {})}
            )
            n, cursor = n + len(page["items"]), page["next_cursor"]
            if cursor is None:
                return n, "trials"

    def export(self, form: str) -> tuple[int, str]:
        return sum(1 for _ in self._lines("export", format=form)), "lines"

    def events(self, after: int = 0) -> tuple[int, str]:
        lines = self._lines("events", after=after, follow=False)
        return sum(line.startswith("id:") for line in lines), "events"

    def places(self) -> tuple[int, int]:
        """The ids in the middle and at the end of the stream."""
        lines = self._lines("events", after=0, follow=False)
        ids = [int(line[3:]) for line in lines if line.startswith("id:")]
        return ids[len(ids) // 2], ids[-1]

    def _lines(self, what: str, **params: Any) -> Iterator[str]:
        headers = {"Authorization": f"Bearer {self._client.key}"}
        url = f"{self._client.url}/v1/studies/{self._study}/{what}"
        with httpx2.stream("GET", url, params=params, headers=headers, timeout=120.0) as answer:
            assert answer.status_code == 200, answer.read()
            yield from answer.iter_lines()


def read_all(client: Client, study: str, pid: int) -> float:
    """Every way of reading everything; the most memory any of them added."""
    reader = Reader(client, study, pid)
    reader.read("all pages by number", reader.pages)
    reader.read("all pages by time of change", lambda: reader.pages(updated_since="2000-01-01T00:00:00Z"))
    reader.read("export, JSON lines", lambda: reader.export("jsonl"))
    reader.read("export, CSV", lambda: reader.export("csv"))
    reader.read("events from the start", reader.events)
    middle, last = reader.places()
    reader.read("events resumed in the middle", lambda: reader.events(middle))
    reader.read("events resumed at the end", lambda: reader.events(last))
    return max(reader.growth)


def compare(few: dict[str, list[float]], many: dict[str, list[float]], n_few: int, n_many: int) -> None:
    """The small study beside the large one."""
    for name, before in few.items():
        small, large = statistics.median(before), statistics.median(many[name])
        print(
            f"{name:20} {n_few}: p50 {1e3 * small:6.1f} ms p95 {1e3 * percentile(before, 0.95):6.1f} ms   "
            f"{n_many}: p50 {1e3 * large:6.1f} ms p95 {1e3 * percentile(many[name], 0.95):6.1f} ms   "
            f"ratio {large / small:5.2f}"
        )


def main() -> int:
    """The tables; 1 where memory is not bounded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgres", action="store_true", help="PostgreSQL instead of SQLite")
    parser.add_argument("--few", type=int, default=500)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--calls", type=int, default=200)
    options = parser.parse_args()
    with (
        running_postgres() if options.postgres else nullcontext("") as database_url,
        running_service(database_url=database_url) as (client, pid),
    ):
        spec = {"name": "scale", "parameters": PARAMETERS, "metrics": [{"name": "loss", "goal": "minimize"}]}
        study = client.create_study(spec | {"surrogate": {"name": "sobol"}}).id
        client.import_trials(study, rows(options.few))
        measure(client, study, 20)
        few = measure(client, study, options.calls)
        print(f"HTTP process with {options.few} trials: {memory_megabytes(pid):.0f} MB")
        grow(client, study, options.many)
        print(f"HTTP process after the import: {memory_megabytes(pid):.0f} MB")
        if options.postgres:
            analyze(database_url)
        many = measure(client, study, options.calls)
        compare(few, many, options.few, options.many)
        log_events(Settings(database_url=database_url), study, 2 * options.many)
        growth = read_all(client, study, pid)
        two = [{"name": name, "goal": "minimize"} for name in ("a", "b")]
        pair = client.create_study(spec | {"name": "pair", "metrics": two, "surrogate": {"name": "sobol"}}).id
        grow(client, pair, options.many, ("a", "b"))
        start = time.perf_counter()
        print(
            f"Pareto front: {len(client.pareto(pair))} trials in {1e3 * (time.perf_counter() - start):.1f} ms"
        )
    print(f"the most memory that reading everything added: {growth:.0f} MB (allowed: {GROWTH_MEGABYTES:.0f})")
    return int(growth > GROWTH_MEGABYTES)


if __name__ == "__main__":
    raise SystemExit(main())
