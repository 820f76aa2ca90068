"""Heartbeats of 64 workers on PostgreSQL: at a steady rate, and as many as go through, beside Optuna's.

At the steady rate (`--rate` a second, evenly spaced) a heartbeat's time counts from the moment it was due, so a slow
answer delays nothing that is measured after it. The load is raw HTTP (lean.py) from one process of coroutines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
import warnings

import usage
import uvloop
from lean import Lean
from service import percentile, running_postgres, running_service
from throughput import PARAMETERS, in_threads, run_processes

LEASE_SECONDS = 600

Beat = tuple[str, bytes]
"""Path and body of a trial's heartbeat."""


async def beat(connection: Lean, path: str, body: bytes) -> None:
    """One heartbeat. Raises: AssertionError where the lease was not kept."""
    status, answer = await connection.raw("PUT", path, body)
    assert status == 200, answer


async def steadily(url: str, key: str, beats: list[Beat], *, rate: float, seconds: float) -> list[float]:
    """Seconds from when each heartbeat was due to its answer."""
    times: list[float] = []
    start = time.perf_counter() + 0.5

    async def work(i: int, path: str, body: bytes) -> None:
        connection = Lean(url, key)
        for k in range(int(rate * seconds / len(beats))):
            due = start + (k * len(beats) + i) / rate
            await asyncio.sleep(due - time.perf_counter())
            await beat(connection, path, body)
            times.append(time.perf_counter() - due)
        connection.close()

    await asyncio.gather(*(work(i, *one) for i, one in enumerate(beats)))
    return times


async def flat_out(url: str, key: str, beats: list[Beat], *, seconds: float) -> list[float]:
    """Seconds of each heartbeat where every worker sends the next at once."""
    times: list[float] = []

    async def work(path: str, body: bytes) -> None:
        connection, until = Lean(url, key), time.perf_counter() + seconds
        while (start := time.perf_counter()) < until:
            await beat(connection, path, body)
            times.append(time.perf_counter() - start)
        connection.close()

    await asyncio.gather(*(work(*one) for one in beats))
    return times


def optuna_beats(url: str, n_threads: int, seconds: float) -> int:
    """How many heartbeats Optuna's storage records, a storage and a running trial for each worker."""
    import optuna

    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def work(_: int) -> int:
        storage = optuna.storages.RDBStorage(url, heartbeat_interval=60)
        trial = storage.create_new_trial(storage.get_study_id_from_name("t"))
        n, until = 0, time.monotonic() + seconds
        while time.monotonic() < until:
            storage.record_heartbeat(trial)
            n += 1
        return n

    return sum(in_threads(work, n_threads))


def shown(times: list[float]) -> str:
    """Percentiles."""
    p50, p95, p99 = (1e3 * percentile(times, share) for share in (0.5, 0.95, 0.99))
    return f"p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms, worst {1e3 * max(times):.1f} ms"


def ours(options: argparse.Namespace) -> float:
    """Prints both figures; returns heartbeats a second flat out."""
    with (
        running_postgres() as database_url,
        running_service(database_url=database_url, processes=options.api) as (client, _),
    ):
        spec = {"name": "t", "parameters": PARAMETERS, "metrics": [{"name": "loss", "goal": "minimize"}]}
        study = client.create_study(spec | {"surrogate": {"name": "sobol"}}).id
        beats: list[Beat] = []
        while len(beats) < options.workers:
            found = client.claim(study, f"w{len(beats)}", wait_seconds=10, lease_seconds=LEASE_SECONDS)
            beats += [
                (f"/v1/trials/{trial.id}/heartbeat", json.dumps({"lease": trial.lease}).encode())
                for trial in found.trials
            ]
        time.sleep(5)  # the compute process has its libraries by then
        address = (client.url, client.key or "")
        uvloop.run(steadily(*address, beats, rate=options.rate, seconds=2))
        with usage.measured() as used:
            times = uvloop.run(steadily(*address, beats, rate=options.rate, seconds=options.seconds))
        print(f"bo-service at {options.rate:g}/s: {shown(times)}   (load average {os.getloadavg()[0]:.1f})")
        print(f"  {used}\n  {used.milliseconds_each(len(times))}")
        with usage.measured() as used:
            times = uvloop.run(flat_out(*address, beats, seconds=options.seconds))
        rate = len(times) / options.seconds
        print(f"bo-service flat out: {rate:.0f}/s, {shown(times)}   (load average {os.getloadavg()[0]:.1f})")
        print(f"  {used}\n  {used.milliseconds_each(len(times))}")
    return rate


def optunas(options: argparse.Namespace) -> float:
    """Heartbeats a second, flat out, of as many workers in four processes."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with running_postgres() as database_url:
        optuna.create_study(study_name="t", storage=database_url)
        rows = [(database_url, options.workers // 4)] * 4
        rate = sum(run_processes(optuna_beats, rows, options.seconds)) / options.seconds
    print(f"Optuna RDB flat out: {rate:.0f}/s   (load average {os.getloadavg()[0]:.1f})")
    return rate


def main() -> None:
    """The figures, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--api", type=int, default=1, help="HTTP processes of the service")
    options = parser.parse_args()
    mine, theirs = ours(options), optunas(options)
    print(f"bo-service / Optuna RDB: {mine / theirs:.2f}")


if __name__ == "__main__":
    main()
