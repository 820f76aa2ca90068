"""Ask and tell: many workers against the service, beside as many on Optuna's RDB storage on the same database.

SQLite with 8 workers, or with `--postgres` PostgreSQL with 64. All draw random or Sobol points of the same space, so
that storage and transport are measured, not a model. By default the service's workers are coroutines over raw HTTP
(lean.py), since they share the cores with the service; `--client python` takes the Python client in processes of
threads, as Optuna's workers are run. `--vizier PYTHON` adds OSS Vizier's service, under an interpreter of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import subprocess
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import usage
import uvloop
from lean import Lean
from service import percentile, running_postgres, running_service

from bo_service.client import Client

IMPORT_SECONDS = 5.0
"""The compute process imports its libraries meanwhile: what is measured is the service at work."""

WARM_UP_SECONDS = 3.0
"""Load that is not measured: the service learns how many workers there are and prepares for them."""

PARAMETERS = [{"type": "float", "name": f"x{i}", "low": 0.0, "high": 1.0} for i in range(4)]

Times = list[tuple[float, float]]
"""Seconds of each claim and of the tell that followed it."""


def in_threads(act: Callable[[int], Any], n_threads: int) -> list[Any]:
    """What each of so many threads returns."""
    with ThreadPoolExecutor(n_threads) as pool:
        return [done.result() for done in [pool.submit(act, i) for i in range(n_threads)]]


def ask_and_tell(url: str, key: str, study: str, worker: str, n_threads: int, seconds: float) -> Times:
    """Claim and complete with the Python client until the time is over."""

    def work(thread: int) -> Times:
        times = []
        with Client(url, key) as client:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                start = time.perf_counter()
                found = client.claim(study, f"{worker}/{thread}", wait_seconds=10)
                middle = time.perf_counter()
                for trial in found.trials:
                    client.complete(trial, {"loss": sum(trial.parameters.values())})
                    times.append((middle - start, time.perf_counter() - middle))
        return times

    return [pair for times in in_threads(work, n_threads) for pair in times]


async def lean_worker(url: str, key: str, study: str, worker: str, seconds: float) -> Times:
    """The same over raw HTTP. Raises: AssertionError on any other answer than 200 and 202."""
    connection, times = Lean(url, key), []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        start = time.perf_counter()
        asked = {"worker": worker, "wait_seconds": 10}
        status, found = await connection.call("POST", f"/v1/studies/{study}/trials", asked)
        assert status in (200, 202), found
        middle = time.perf_counter()
        for trial in found["trials"]:
            told = {"lease": trial["lease"], "metrics": {"loss": sum(trial["parameters"].values())}}
            status, answer = await connection.call("POST", f"/v1/trials/{trial['id']}/complete", told)
            assert status == 200, answer
            times.append((middle - start, time.perf_counter() - middle))
    connection.close()
    return times


def lean_workers(url: str, key: str, study: str, n_workers: int, seconds: float) -> Times:
    """So many of them at once."""

    async def all_of_them() -> list[Times]:
        names = [f"w{i}" for i in range(n_workers)]
        return await asyncio.gather(*(lean_worker(url, key, study, name, seconds) for name in names))

    return [pair for times in uvloop.run(all_of_them()) for pair in times]


def optuna_worker(url: str, name: str, n_threads: int, seconds: float) -> int:
    """Optuna's ask and tell; a storage for each worker, as its documentation has it."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")

    def work(_: int) -> int:
        study = optuna.load_study(study_name=name, storage=url, sampler=optuna.samplers.RandomSampler())
        n, until = 0, time.monotonic() + seconds
        while time.monotonic() < until:
            trial = study.ask()
            study.tell(trial, sum(trial.suggest_float(f"x{i}", 0, 1) for i in range(4)))
            n += 1
        return n

    return sum(in_threads(work, n_threads))


def _run(out: multiprocessing.Queue, act: Callable[..., Any], *arguments: Any) -> None:
    try:
        out.put((act(*arguments), None))
    except Exception:  # noqa: BLE001  whatever it was, the parent shall know
        out.put((None, traceback.format_exc(limit=-8)))


def run_processes(act: Callable[..., Any], arguments: list[tuple], seconds: float) -> list[Any]:
    """What each process returns. Raises: SystemExit with what went wrong in one."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    processes = [context.Process(target=_run, args=(out, act, *a, seconds)) for a in arguments]
    for process in processes:
        process.start()
    found = []
    for _ in processes:
        result, trouble = out.get(timeout=seconds + 120)
        if trouble is not None:
            for process in processes:
                process.terminate()
            raise SystemExit(trouble)
        found.append(result)
    for process in processes:
        process.join()
    return found


def ours(options: argparse.Namespace, database_url: str) -> float:
    """Trials a second through HTTP."""
    with running_service(database_url=database_url, processes=options.api) as (client, _):
        spec = {"name": "t", "parameters": PARAMETERS, "metrics": [{"name": "loss", "goal": "minimize"}]}
        study = client.create_study(spec | {"surrogate": {"name": "sobol"}}).id
        time.sleep(IMPORT_SECONDS)
        n_workers = options.clients * options.threads
        lean_workers(client.url, client.key or "", study, n_workers, WARM_UP_SECONDS)
        with usage.measured() as used:
            if options.client == "lean":
                pairs = lean_workers(client.url, client.key or "", study, n_workers, options.seconds)
            else:
                rows = [
                    (client.url, client.key, study, f"w{i}", options.threads) for i in range(options.clients)
                ]
                pairs = [
                    pair for times in run_processes(ask_and_tell, rows, options.seconds) for pair in times
                ]
    for which, name in enumerate(("claim", "tell")):
        times = [pair[which] for pair in pairs]
        p50, p95, p99 = (1e3 * percentile(times, share) for share in (0.5, 0.95, 0.99))
        print(f"  {name:5} p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms")
    print(f"  {used}\n  {used.milliseconds_each(len(pairs))}")
    return len(pairs) / options.seconds


def optunas(options: argparse.Namespace, database_url: str) -> float:
    """Trials a second through Optuna's RDB storage."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        url = database_url or f"sqlite:///{Path(folder) / 'optuna.db'}"
        optuna.create_study(study_name="t", storage=url)
        rows = [(url, "t", options.threads)] * options.clients
        with usage.measured() as used:
            found = run_processes(optuna_worker, rows, options.seconds)
    print(f"  {used}")
    return sum(found) / options.seconds


def viziers(options: argparse.Namespace, _: str) -> float:
    """Trials a second through OSS Vizier's service; see vizier_peer.py."""
    script = Path(__file__).with_name("vizier_peer.py")
    numbers = [str(n) for n in (options.clients, options.threads, options.seconds)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with usage.measured() as used:
        done = subprocess.run(
            [options.vizier, str(script), *numbers],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
    print(f"  {used}")
    return float(done.stdout.split()[-1])


def main() -> None:
    """All in turn, twice by default, and the ratios of the best."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgres", action="store_true", help="PostgreSQL instead of SQLite")
    parser.add_argument("--clients", type=int, help="processes with workers (8; 4 on PostgreSQL)")
    parser.add_argument("--threads", type=int, help="workers of a process (1; 16 on PostgreSQL)")
    parser.add_argument("--api", type=int, default=1, help="HTTP processes of the service")
    parser.add_argument(
        "--client", choices=("lean", "python"), default="lean", help="how our workers speak HTTP"
    )
    parser.add_argument("--vizier", metavar="PYTHON", help="an interpreter that has google-vizier")
    parser.add_argument("--only", choices=("bo-service", "Optuna RDB", "OSS Vizier"), help="no peers")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    options.clients = options.clients or (4 if options.postgres else 8)
    options.threads = options.threads or (16 if options.postgres else 1)
    runs = {"bo-service": ours, "Optuna RDB": optunas} | ({"OSS Vizier": viziers} if options.vizier else {})
    runs = {name: run for name, run in runs.items() if options.only in (None, name)}
    best = dict.fromkeys(runs, 0.0)
    for _ in range(options.rounds):
        for name, run in runs.items():
            with running_postgres() if options.postgres else nullcontext("") as database_url:
                rate = run(options, database_url)
            best[name] = max(best[name], rate)
            print(f"{name:12} {rate:7.1f} trials/s   (load average {os.getloadavg()[0]:.1f})", flush=True)
    for name in list(runs)[1:]:
        print(f"{'bo-service / ' + name:25} {best['bo-service'] / best[name]:7.2f}")


if __name__ == "__main__":
    main()
