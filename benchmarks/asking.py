"""Claim and tell of one client while the compute child fits without pause, beside Optuna's ask and tell alone.

The client works on a study whose suggestions lie ready; a second study of 300 trials keeps the child fitting.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
import warnings
from pathlib import Path

from service import percentile, running_service

from bo_service.client import Client

METRICS = [{"name": "loss", "goal": "minimize"}]


def floats(d: int) -> list[dict[str, object]]:
    """Parameters of a box."""
    return [{"type": "float", "name": f"x{i}", "low": 0.0, "high": 1.0} for i in range(d)]


def keep_fitting(client: Client, study: str, stop: threading.Event, fits: list[float]) -> None:
    """Claim and complete on a study with a model, so that one fit follows the other."""
    while not stop.is_set():
        for trial in client.claim(study, "fitter", wait_seconds=20).trials:
            client.complete(trial, {"loss": random.random()})
            fits.append(time.monotonic())


def ours(n: int) -> tuple[list[float], list[float]]:
    """Seconds of n claims and tells."""
    with running_service() as (client, _):
        ready = client.create_study(
            {"name": "ready", "parameters": floats(4), "metrics": METRICS, "surrogate": {"name": "sobol"}}
        ).id
        busy = client.create_study({"name": "busy", "parameters": floats(8), "metrics": METRICS}).id
        rows = [
            {"parameters": {f"x{i}": random.random() for i in range(8)}, "metrics": {"loss": random.random()}}
            for _ in range(300)
        ]
        client.import_trials(busy, rows)
        stop, fits = threading.Event(), []
        with Client(client.url, client.key) as other:
            fitter = threading.Thread(target=keep_fitting, args=(other, busy, stop, fits))
            fitter.start()
            while len(fits) < 3:
                time.sleep(0.1)
            claims, tells = [], []
            started = time.monotonic()
            for i in range(n + 20):
                begin = time.perf_counter()
                found = client.claim(ready, "w", wait_seconds=10)
                middle = time.perf_counter()
                client.complete(found.trials[0], {"loss": 1.0})
                if i >= 20:
                    claims.append(middle - begin)
                    tells.append(time.perf_counter() - middle)
                time.sleep(0.02)
            seconds = time.monotonic() - started
            n_fits = sum(t > started for t in fits)
            stop.set()
            fitter.join()
    print(f"{n_fits} fits on 300 trials in the {seconds:.0f} s")
    return claims, tells


def optunas(n: int) -> tuple[list[float], list[float]]:
    """The same calls on Optuna's RDB storage in this process, nobody beside."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    asks, tells = [], []
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'optuna.db'}"
        study = optuna.create_study(storage=url, sampler=optuna.samplers.RandomSampler())
        for _ in range(n):
            begin = time.perf_counter()
            trial = study.ask()
            value = sum(trial.suggest_float(f"x{i}", 0, 1) for i in range(4))
            middle = time.perf_counter()
            study.tell(trial, value)
            asks.append(middle - begin)
            tells.append(time.perf_counter() - middle)
            time.sleep(0.02)
    return asks, tells


def main() -> None:
    """The table, with ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300)
    options = parser.parse_args()
    mine, theirs = ours(options.calls), optunas(options.calls)
    for name, a, b in zip(("claim", "tell"), mine, theirs, strict=True):
        times = [1e3 * percentile(x, share) for x in (a, b) for share in (0.5, 0.95)]
        print(
            f"{name:6} bo-service p50 {times[0]:6.1f} ms p95 {times[1]:6.1f} ms   "
            f"Optuna p50 {times[2]:6.1f} ms p95 {times[3]:6.1f} ms   ratio at p50 {times[2] / times[0]:5.2f}"
        )


if __name__ == "__main__":
    main()
