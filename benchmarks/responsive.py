"""The API while two fits run without pause on the same two cores: percentiles of a steady mix of calls.

PostgreSQL, Redis, a relay, two compute processes; two `gp` studies keep them fitting. Beside that, 16 workers of a
study without a model claim, beat, read and complete at `--rate` calls a second, evenly spaced; a call's time counts
from the moment it was due. Printed beside the same mix when nothing fits, and Optuna's ask and tell while the fits run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import usage
import uvloop
from fleet import Fleet, running_fleet
from lean import Lean
from service import new_database, percentile

from bo_service.client import BoServiceError, Client

Times = dict[str, list[float]]
CALLS = ("claim", "heartbeat", "read", "complete")


def floats(d: int) -> list[dict[str, object]]:
    """Parameters of a box."""
    return [{"type": "float", "name": f"x{i}", "low": 0.0, "high": 1.0} for i in range(d)]


async def mix(url: str, key: str, study: str, *, n_workers: int, rate: float, seconds: float) -> Times:
    """Seconds from when each call was due to its answer. Raises: AssertionError on a refusal."""
    times: Times = defaultdict(list)
    start = time.perf_counter() + 0.5

    async def work(i: int) -> None:
        connection, trial = Lean(url, key), None
        for k in range(int(rate * seconds / n_workers)):
            due = start + (k * n_workers + i) / rate
            await asyncio.sleep(due - time.perf_counter())
            what = CALLS[k % len(CALLS)]
            if what == "claim":
                asked = {"worker": f"w{i}", "wait_seconds": 10}
                status, found = await connection.call("POST", f"/v1/studies/{study}/trials", asked)
                assert status == 200, found
                trial = found["trials"][0]
            else:
                assert trial is not None
                path, lease = f"/v1/trials/{trial['id']}", {"lease": trial["lease"]}
                if what == "heartbeat":
                    status, found = await connection.call("PUT", f"{path}/heartbeat", lease)
                elif what == "read":
                    status, found = await connection.call("GET", path)
                else:
                    told = lease | {"metrics": {"loss": 1.0}}
                    status, found = await connection.call("POST", f"{path}/complete", told)
                assert status == 200, found
            times[what].append(time.perf_counter() - due)
        connection.close()

    await asyncio.gather(*(work(i) for i in range(n_workers)))
    return times


def keep_fitting(url: str, key: str, study: str, stop: threading.Event, n_done: list[float]) -> None:
    """Claim and complete on a study with a model, so that one fit follows the other."""
    with Client(url, key, patience_seconds=120) as client:
        while not stop.is_set():
            try:
                for trial in client.claim(study, "fitter", wait_seconds=20).trials:
                    client.complete(trial, {"loss": random.random()})
                    n_done.append(time.monotonic())
            except BoServiceError as error:
                print(f"  the fitter of {study}: {error}")


@contextmanager
def fitting(fleet: Fleet, n_trials: int) -> Iterator[list[float]]:
    """Two studies whose fits follow each other; the times at which a suggestion of theirs was evaluated."""
    stop, done, threads = threading.Event(), [], []
    for name in ("busy-0", "busy-1"):
        with Client(fleet.url, fleet.key) as client:
            spec = {"name": name, "parameters": floats(8), "metrics": [{"name": "loss", "goal": "minimize"}]}
            study = client.create_study(spec | {"surrogate": {"name": "gp"}}).id
            draw = random.Random(name)
            rows = [
                {"parameters": {f"x{i}": draw.random() for i in range(8)}, "metrics": {"loss": draw.random()}}
                for _ in range(n_trials)
            ]
            client.import_trials(study, rows)
        threads.append(threading.Thread(target=keep_fitting, args=(fleet.url, fleet.key, study, stop, done)))
    for thread in threads:
        thread.start()
    try:
        while len(done) < 4:
            time.sleep(0.2)
        yield done
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def optuna_times(url: str, n: int) -> list[float]:
    """Seconds of ask and tell of Optuna's random sampler, one after the other, twenty a second."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    study = optuna.create_study(storage=url, study_name="t", sampler=optuna.samplers.RandomSampler())
    times = []
    for _ in range(n):
        start = time.perf_counter()
        trial = study.ask()
        study.tell(trial, sum(trial.suggest_float(f"x{i}", 0, 1) for i in range(4)))
        times.append(time.perf_counter() - start)
        time.sleep(0.05)
    return times


def show(name: str, times: list[float]) -> None:
    """Percentiles."""
    p50, p95, p99 = (1e3 * percentile(times, share) for share in (0.5, 0.95, 0.99))
    print(
        f"  {name:10} {len(times):6} calls  p50 {p50:6.1f} ms  p95 {p95:6.1f} ms  p99 {p99:6.1f} ms",
        flush=True,
    )


def main() -> None:
    """The mix alone, the mix beside fits, Optuna beside fits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--trials", type=int, default=200, help="trials of each gp study at the start")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--api", type=int, default=1, help="HTTP processes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_fleet(Path(folder)) as fleet:
        fleet.add_api(options.api)
        fleet.add_bo("relay", "relay")
        fleet.add_bo("compute", "compute", "--name", "compute", "--concurrency", "2")
        fleet.wait_ready()
        with Client(fleet.url, fleet.key) as client:
            spec = {
                "name": "ready",
                "parameters": floats(4),
                "metrics": [{"name": "loss", "goal": "minimize"}],
            }
            study = client.create_study(spec | {"surrogate": {"name": "sobol"}}).id
            # compute has its libraries when the first suggestion is there
            while not (found := client.claim(study, "first", wait_seconds=20).trials):
                pass
            client.complete(found[0], {"loss": 1.0})
        how = {"n_workers": options.workers, "rate": options.rate}
        address = (fleet.url, json.loads((fleet.folder / "credentials.json").read_text())["key"], study)
        uvloop.run(mix(*address, **how, seconds=10))
        alone = uvloop.run(mix(*address, **how, seconds=options.seconds))
        with fitting(fleet, options.trials) as done:
            begun, n_before = time.monotonic(), len(done)
            with usage.measured() as used:
                beside = uvloop.run(mix(*address, **how, seconds=options.seconds))
            n_fits, seconds = len(done) - n_before, time.monotonic() - begun
            theirs = optuna_times(new_database(fleet.database_url), int(10 * options.seconds))
    print(f"{options.rate:g} calls a second, nothing fits (load average {os.getloadavg()[0]:.1f} at the end)")
    for what in CALLS:
        show(what, alone[what])
    show("all", [t for times in alone.values() for t in times])
    print(
        f"{options.rate:g} calls a second beside two fits without pause: {n_fits} suggestions in {seconds:.0f} s"
    )
    print(f"  {used}")
    for what in CALLS:
        show(what, beside[what])
    every = [t for times in beside.values() for t in times]
    show("all", every)
    print("Optuna RDB, ask and tell of one client beside the same fits")
    show("ask+tell", theirs)
    pair = percentile(beside["claim"], 0.5) + percentile(beside["complete"], 0.5)
    print(f"Optuna RDB / bo-service at p50, ask and tell: {percentile(theirs, 0.5) / pair:.2f}")


if __name__ == "__main__":
    main()
