"""Ask and tell: many workers against the service, beside as many on Optuna's RDB storage on the same database.

SQLite with 8 workers, or with `--postgres` PostgreSQL with 64. Both draw random or Sobol points of the same space, so
that storage and transport are measured, not a model.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from service import percentile, running_postgres, running_service

from bo_service.client import Client

WARM_UP_SECONDS = 5.0
"""The compute process imports its libraries meanwhile: what is measured is the service at work."""

PARAMETERS = [{"type": "float", "name": f"x{i}", "low": 0.0, "high": 1.0} for i in range(4)]


def in_threads(act, n_threads: int) -> list:
    """What each of so many threads returns."""
    with ThreadPoolExecutor(n_threads) as pool:
        return [done.result() for done in [pool.submit(act, i) for i in range(n_threads)]]


def ask_and_tell(
    url: str, key: str, study: str, worker: str, n_threads: int, seconds: float, out: multiprocessing.Queue
) -> None:
    """Claim and complete until the time is over; report how long each took."""

    def work(thread: int) -> list[tuple[float, float]]:
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

    out.put([pair for times in in_threads(work, n_threads) for pair in times])


def optuna_worker(url: str, name: str, n_threads: int, seconds: float, out: multiprocessing.Queue) -> None:
    """The same with Optuna's ask and tell."""
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

    out.put(sum(in_threads(work, n_threads)))


def run_processes(target, arguments: list[tuple], seconds: float) -> list:
    """What each process put out."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    processes = [context.Process(target=target, args=(*a, seconds, out)) for a in arguments]
    for process in processes:
        process.start()
    found = [out.get(timeout=seconds + 120) for _ in processes]
    for process in processes:
        process.join()
    return found


def ours(options: argparse.Namespace, database_url: str) -> float:
    """Trials a second through HTTP."""
    with running_service(database_url=database_url, processes=options.api) as (client, _):
        spec = {"name": "t", "parameters": PARAMETERS, "metrics": [{"name": "loss", "goal": "minimize"}]}
        study = client.create_study(spec | {"surrogate": {"name": "sobol"}}).id
        time.sleep(WARM_UP_SECONDS)
        rows = [(client.url, client.key, study, f"w{i}", options.threads) for i in range(options.clients)]
        found = run_processes(ask_and_tell, rows, options.seconds)
    pairs = [pair for times in found for pair in times]
    for which, name in enumerate(("claim", "tell")):
        times = [pair[which] for pair in pairs]
        p50, p95, p99 = (1e3 * percentile(times, share) for share in (0.5, 0.95, 0.99))
        print(f"  {name:5} p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms")
    return len(pairs) / options.seconds


def optunas(options: argparse.Namespace, database_url: str) -> float:
    """Trials a second through Optuna's RDB storage."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        url = database_url or f"sqlite:///{Path(folder) / 'optuna.db'}"
        optuna.create_study(study_name="t", storage=url)
        rows = [(url, "t", options.threads)] * options.clients
        found = run_processes(optuna_worker, rows, options.seconds)
    return sum(found) / options.seconds


def main() -> None:
    """Both in turn, twice, and the ratio of the better halves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgres", action="store_true", help="PostgreSQL instead of SQLite")
    parser.add_argument("--clients", type=int, help="processes with workers (8; 4 on PostgreSQL)")
    parser.add_argument("--threads", type=int, help="workers of a process (1; 16 on PostgreSQL)")
    parser.add_argument("--api", type=int, default=1, help="HTTP processes of the service")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    options.clients = options.clients or (4 if options.postgres else 8)
    options.threads = options.threads or (16 if options.postgres else 1)
    best = {"bo-service": 0.0, "Optuna RDB": 0.0}
    for _ in range(options.rounds):
        for name, run in (("bo-service", ours), ("Optuna RDB", optunas)):
            with running_postgres() if options.postgres else nullcontext("") as database_url:
                rate = run(options, database_url)
            best[name] = max(best[name], rate)
            print(f"{name:12} {rate:7.1f} trials/s")
    print(f"ratio        {best['bo-service'] / best['Optuna RDB']:7.2f}")


if __name__ == "__main__":
    main()
