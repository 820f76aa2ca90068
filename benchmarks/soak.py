"""A soak: objective workers at work while everything around them, and they themselves, are killed at random.

PostgreSQL, Redis, two HTTP processes, two relays, two compute workers. Every few seconds a seeded choice is killed
with -9 (an HTTP process, all of them, a relay, a compute worker, a process of objective workers, Redis) or Redis is
flushed; with `--restart-postgres` the database server is restarted, too. The script starts again whoever ended. Workers
leave some trials without a word. At the end the load drains, and every result that was acknowledged must be stored once
with its value, and no rule of the database be broken (`bo db check`); anything else ends the script with status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import service
import usage
from fleet import Fleet, running_fleet
from service import percentile
from sqlalchemy import func, select

from bo_service.bootstrap import broken_invariants, build_services
from bo_service.client import Client
from bo_service.domain.records import EventKind
from bo_service.domain.trial import TrialState
from bo_service.storage.tables import EventRow, ObservationRow, TrialRow, table_of

WORKERS_A_PROCESS = 8
GP_TRIALS = 150
"""A `gp` study is stopped after so many, and the next one begins: fits of thousands of trials are another test."""

DRAIN_SECONDS = 120.0
NOTHING_OPEN = timedelta(days=-1)
"""As the grace of a check: whatever is under way counts as stuck."""

SPEC = {
    "parameters": [{"type": "float", "name": f"x{i}", "low": -1.0, "high": 1.0} for i in range(3)],
    "metrics": [{"name": "loss", "goal": "minimize"}],
    "retry": {"lease_seconds": 10, "max_attempts": 100},
}


@dataclass
class Soak:
    """The fleet under load, the studies it works on, and what was done to it."""

    fleet: Fleet
    options: argparse.Namespace
    done: Counter[str] = field(default_factory=Counter)
    peak_megabytes: dict[str, float] = field(default_factory=dict)
    studies: list[dict[str, Any]] = field(default_factory=list)
    n_gp: int = 0

    def start(self) -> None:
        """Everybody, the service first."""
        fleet = self.fleet
        fleet.add_api(self.options.api)
        for i in range(2):
            fleet.add_bo(f"relay-{i}", "relay")
            fleet.add_bo(f"compute-{i}", "compute", "--name", f"compute-{i}")
        fleet.wait_ready()
        with self._client() as client:
            for i in range(3):
                created = client.create_study(SPEC | {"name": f"sobol-{i}", "surrogate": {"name": "sobol"}})
                self.studies.append({"id": created.id, "seconds": self.options.seconds})
            self._next_gp(client)
        for first in range(0, self.options.workers, WORKERS_A_PROCESS):
            n = min(WORKERS_A_PROCESS, self.options.workers - first)
            arguments = [str(fleet.folder), fleet.url, fleet.key, f"workers-{first}", str(first), str(n)]
            script = Path(__file__).with_name("soak_worker.py")
            fleet.add(f"workers-{first}", [sys.executable, str(script), *arguments])

    def _client(self) -> Client:
        return Client(self.fleet.url, self.fleet.key, patience_seconds=60.0)

    def _next_gp(self, client: Client) -> None:
        """The last of the studies is a `gp` study; a new one takes its place."""
        self.n_gp += 1
        spec = SPEC | {"name": f"gp-{self.n_gp}", "stopping": {"max_trials": GP_TRIALS}}
        created = client.create_study(spec | {"surrogate": {"name": "gp"}})
        self.studies = [*self.studies[:3], {"id": created.id, "seconds": 2 * self.options.seconds}]
        part = self.fleet.folder / "studies.part"
        part.write_text(json.dumps(self.studies))
        part.rename(self.fleet.folder / "studies.json")

    def run(self) -> float:
        """Kill, mend and watch until the time is over; returns its seconds."""
        draw, started = random.Random(self.options.seed), time.monotonic()
        next_kill = next_look = started + self.options.kill_every
        until = started + 60 * self.options.minutes
        while (now := time.monotonic()) < until:
            if now >= next_kill:
                self._strike(draw)
                next_kill = now + self.options.kill_every * draw.uniform(0.5, 1.5)
            self.fleet.mend()
            self._weigh()
            if now >= next_look:
                with self._client() as client:
                    if client.study(self.studies[-1]["id"]).state != "ACTIVE":
                        self._next_gp(client)
                next_look = now + 5.0
            time.sleep(0.2)
        return time.monotonic() - started

    def _strike(self, draw: random.Random) -> None:
        """One seeded misfortune."""
        of_kind = {
            kind: [name for name in self.fleet.members if name.startswith(kind)]
            for kind in ("workers", "compute", "relay")
        }
        kinds = [
            "http process",
            "all http processes",
            "workers",
            "compute",
            "relay",
            "redis",
            "redis flushed",
        ]
        kind = draw.choice(kinds + ["postgres"] * bool(self.options.restart_postgres))
        self.done[kind] += 1
        if kind in of_kind:
            self.fleet.kill(draw.choice(of_kind[kind]))
        elif kind == "redis":
            self.fleet.kill("redis")
        elif kind == "redis flushed":
            self._flush_redis()
        elif kind == "all http processes":
            self.fleet.kill("api")
        elif kind == "postgres" and service.postgres is not None:
            service.postgres.restart()
        elif children := self._http_children():
            os.kill(draw.choice(children), signal.SIGKILL)

    def _http_children(self) -> list[int]:
        """The processes that answer, sorted; the parent starts another when one dies."""
        parent = self.fleet.members["api"].process
        if parent is None:
            return []
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                is_child = path.read_text().rsplit(")", 1)[1].split()[1] == str(parent.pid)
                command = (path.parent / "cmdline").read_bytes()
            except OSError:
                continue
            if is_child and b"resource_tracker" not in command:
                found.append(int(path.parent.name))
        return sorted(found)

    def _flush_redis(self) -> None:
        import redis

        try:
            with redis.Redis(port=self.fleet.redis_port) as client:
                client.flushall()
        except redis.RedisError:
            self.done["redis flushed"] -= 1

    def _weigh(self) -> None:
        for part in ("http", "compute", "relay", "postgres"):
            weights = usage.megabytes(part)
            self.peak_megabytes[part] = max([self.peak_megabytes.get(part, 0.0), *weights])

    def drain(self) -> None:
        """Let workers finish; then wait until no trial is held by somebody who is gone."""
        (self.fleet.folder / "stop").touch()
        workers = [name for name in self.fleet.members if name.startswith("workers")]
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline and any(self.fleet.members[name].is_alive for name in workers):
            ended = [
                self.fleet.members.pop(name) for name in workers if not self.fleet.members[name].is_alive
            ]
            workers = [name for name in workers if name not in {member.name for member in ended}]
            self.fleet.mend()
            time.sleep(0.2)


def notes(folder: Path) -> list[dict[str, Any]]:
    """What all workers noted."""
    return [
        json.loads(line) for path in folder.glob("notes-*.jsonl") for line in path.read_text().splitlines()
    ]


def losses(fleet: Fleet, noted: list[dict[str, Any]]) -> list[str]:
    """Everything that is not as it must be, in words."""
    kept = [(note["trial"], note["value"]) for note in noted if note["what"] == "kept"]
    found = [
        f"trial {trial} was acknowledged {n} times"
        for trial, n in Counter(t for t, _ in kept).items()
        if n > 1
    ]
    services = build_services(fleet.settings)
    try:
        deadline = time.monotonic() + DRAIN_SECONDS
        # leases of the dead end and are reaped, fits run: then nothing is held, and no job waits or runs
        while (broken := broken_invariants(services, grace=NOTHING_OPEN)) and time.monotonic() < deadline:
            fleet.mend()
            time.sleep(1.0)
        found += broken
        trials, observations, events = map(table_of, (TrialRow, ObservationRow, EventRow))
        with services.transactions(read_only=True) as (connection, _):
            stored = {row.id: row for row in connection.execute(select(trials.c.id, trials.c.state))}
            values: dict[str, list[float]] = {}
            final = select(observations.c.trial_id, observations.c.value).where(observations.c.step == -1)
            for row in connection.execute(final):
                values.setdefault(row.trial_id, []).append(row.value)
            closed = select(events.c.trial_id, func.count().label("n")).group_by(events.c.trial_id)
            closings = closed.where(events.c.kind == EventKind.TRIAL_CLOSED.value)
            n_closings = {row.trial_id: row.n for row in connection.execute(closings)}
    finally:
        services.close()
    for trial, value in kept:
        state = stored[trial].state if trial in stored else "missing"
        if state != TrialState.COMPLETED.value:
            found.append(f"trial {trial} was acknowledged and is {state}")
        elif values.get(trial) != [value] or n_closings.get(trial) != 1:
            found.append(
                f"trial {trial}: acknowledged {value}, stored {values.get(trial)}, closed {n_closings.get(trial)} times"
            )
    return found


def show(soak: Soak, noted: list[dict[str, Any]], seconds: float) -> None:
    """The figures as a table."""
    counted = Counter(note["what"] for note in noted)
    print(f"{'':10} {'a second':>9} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8}")
    for what in ("claim", "tell", "heartbeat"):
        times = [note["seconds"] for note in noted if note["what"] == what] or [0.0]
        shares = " ".join(f"{1e3 * percentile(times, share):8.1f}" for share in (0.5, 0.95, 0.99))
        print(f"{what:10} {counted[what] / seconds:9.1f} {shares}")
    print(
        "peak memory of a process, MB: " + ", ".join(f"{k} {v:.0f}" for k, v in soak.peak_megabytes.items())
    )
    print("struck: " + ", ".join(f"{kind} {n}" for kind, n in sorted(soak.done.items())))
    print(
        f"results acknowledged {counted['kept']}, trials abandoned {counted['abandoned']}, leases lost"
        f" {counted['lost']}, unreachable {counted['unreachable']}, refused {counted['refused']};"
        f" gp studies {soak.n_gp}; load average {os.getloadavg()[0]:.1f}"
    )
    for note in [note for note in noted if note["what"] in ("refused", "unreachable")][:5]:
        print(f"  {note}")


def main() -> int:
    """The table; 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--api", type=int, default=2, help="HTTP processes")
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="about the time of an evaluation; twice for gp"
    )
    parser.add_argument(
        "--kill-every", type=float, default=4.0, help="seconds between two misfortunes, about"
    )
    parser.add_argument("--restart-postgres", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with running_fleet(Path(folder), BO_REAPER_SECONDS="1", BO_JOB_LEASE_SECONDS="10") as fleet:
            soak = Soak(fleet, options)
            soak.start()
            seconds = soak.run()
            soak.drain()
            noted = notes(fleet.folder)
            found = losses(fleet, noted)
        show(soak, noted, seconds)
    n_kept = sum(note["what"] == "kept" for note in noted)
    if n_kept == 0:
        found.append("no result was acknowledged: nothing was tested")
    found += [f"refused: {note}" for note in noted if note["what"] == "refused"][:5]
    for sentence in found[:50]:
        print(f"LOST {sentence}")
    print("nothing lost, every rule holds" if not found else f"{len(found)} losses")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
