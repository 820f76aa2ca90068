"""Ask and tell on SQLite: 8 client processes against the service, beside 8 processes on Optuna's RDB storage.

Both draw random or Sobol points of the same space, so that storage and transport are measured, not a model.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
import warnings
from pathlib import Path

from service import percentile, running_service

from bo_service.client import Client

PARAMETERS = [{"type": "float", "name": f"x{i}", "low": 0.0, "high": 1.0} for i in range(4)]


def ask_and_tell(
    url: str, key: str, study: str, worker: str, seconds: float, out: multiprocessing.Queue
) -> None:
    """Claim and complete until the time is over; report how often and how fast."""
    claims, tells = [], []
    with Client(url, key) as client:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            start = time.perf_counter()
            found = client.claim(study, worker, wait_seconds=10)
            middle = time.perf_counter()
            for trial in found.trials:
                client.complete(trial, {"loss": sum(trial.parameters.values())})
                tells.append(time.perf_counter() - middle)
                claims.append(middle - start)
    out.put((claims, tells))


def optuna_worker(url: str, name: str, seconds: float, out: multiprocessing.Queue) -> None:
    """The same with Optuna's ask and tell."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    study = optuna.load_study(study_name=name, storage=url, sampler=optuna.samplers.RandomSampler())
    n, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        trial = study.ask()
        study.tell(trial, sum(trial.suggest_float(f"x{i}", 0, 1) for i in range(4)))
        n += 1
    out.put(n)


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


def ours(n_clients: int, seconds: float) -> float:
    """Trials a second through HTTP."""
    with running_service() as (client, _):
        spec = {"name": "t", "parameters": PARAMETERS, "metrics": [{"name": "loss", "goal": "minimize"}]}
        study = client.create_study(spec | {"surrogate": {"name": "sobol"}}).id
        rows = [(client.url, client.key, study, f"w{i}") for i in range(n_clients)]
        found = run_processes(ask_and_tell, rows, seconds)
    claims = [t for c, _ in found for t in c]
    tells = [t for _, c in found for t in c]
    for name, times in (("claim", claims), ("tell", tells)):
        print(
            f"  {name}: p50 {1e3 * percentile(times, 0.5):.1f} ms, p95 {1e3 * percentile(times, 0.95):.1f} ms"
        )
    return len(claims) / seconds


def optunas(n_processes: int, seconds: float) -> float:
    """Trials a second through Optuna's RDB storage."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'optuna.db'}"
        optuna.create_study(study_name="t", storage=url)
        found = run_processes(optuna_worker, [(url, "t")] * n_processes, seconds)
    return sum(found) / seconds


def main() -> None:
    """Both in turn, twice, and the ratio of the better halves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    best = {"bo-service": 0.0, "Optuna RDB": 0.0}
    for _ in range(options.rounds):
        for name, run in (("bo-service", ours), ("Optuna RDB", optunas)):
            rate = run(options.clients, options.seconds)
            best[name] = max(best[name], rate)
            print(f"{name:12} {rate:7.1f} trials/s")
    print(f"ratio        {best['bo-service'] / best['Optuna RDB']:7.2f}")


if __name__ == "__main__":
    main()
