"""Claim, tell, best and one page of trials with 500 and with 50,000 imported trials; memory of the HTTP process.

The peer is the same study when it was small: the ratio should stay near 1. Claims take suggestions that lie ready.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path

from service import percentile, running_service

from bo_service.client import Client

PARAMETERS = [{"type": "float", "name": f"x{i}", "low": 0.0, "high": 1.0} for i in range(4)]


def memory_megabytes(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def rows(n: int) -> list[dict[str, object]]:
    """Finished trials to import."""
    draw = random.Random(0)
    return [
        {
            "parameters": {f"x{i}": draw.random() for i in range(4)},
            "metrics": {"loss": 1 + draw.random()},
        }
        for _ in range(n)
    ]


def measure(client: Client, study: str, n: int) -> dict[str, list[float]]:
    """Seconds of n calls of each kind."""
    times: dict[str, list[float]] = {"claim": [], "tell": [], "best": [], "page": []}

    def clock(name: str, act):
        start = time.perf_counter()
        found = act()
        times[name].append(time.perf_counter() - start)
        return found

    for i in range(n):
        found = clock("claim", lambda: client.claim(study, "w", wait_seconds=10))
        clock("tell", lambda trial=found.trials[0]: client.complete(trial, {"loss": 2.0}))
        if i % 4 == 0:
            clock("best", lambda: client.best(study))
            clock(
                "page", lambda: client._http.json("GET", f"/v1/studies/{study}/trials", params={"limit": 100})
            )
    return times


def main() -> None:
    """The table, with ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", type=int, default=500)
    parser.add_argument("--many", type=int, default=50_000)
    parser.add_argument("--calls", type=int, default=200)
    options = parser.parse_args()
    with running_service() as (client, pid):
        spec = {"name": "scale", "parameters": PARAMETERS, "metrics": [{"name": "loss", "goal": "minimize"}]}
        study = client.create_study(spec | {"surrogate": {"name": "sobol"}}).id
        client.import_trials(study, rows(options.few))
        measure(client, study, 20)
        few = measure(client, study, options.calls)
        print(f"HTTP process with {options.few} trials: {memory_megabytes(pid):.0f} MB")
        start = time.perf_counter()
        missing = options.many - client.study(study).n_trials
        for offset in range(0, missing, 10_000):
            client.import_trials(study, rows(min(10_000, missing - offset)))
        print(f"imported {missing} trials in {time.perf_counter() - start:.1f} s, by 10,000")
        print(f"HTTP process after the import: {memory_megabytes(pid):.0f} MB")
        many = measure(client, study, options.calls)
        print(f"HTTP process at the end: {memory_megabytes(pid):.0f} MB")
    for name in few:
        small, large = statistics.median(few[name]), statistics.median(many[name])
        print(
            f"{name:6} {options.few}: p50 {1e3 * small:6.1f} ms p95 {1e3 * percentile(few[name], 0.95):6.1f} ms   "
            f"{options.many}: p50 {1e3 * large:6.1f} ms p95 {1e3 * percentile(many[name], 0.95):6.1f} ms   "
            f"ratio {large / small:5.2f}"
        )


if __name__ == "__main__":
    main()
