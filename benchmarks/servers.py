"""uvicorn and granian under the same application, database and load: what one address with several processes costs.

PostgreSQL, Redis, a relay and a compute worker stay; the HTTP processes are swapped. `health` is a route that does
nothing, so it shows the server alone; `loop` is claim and complete of 64 workers over raw HTTP (lean.py).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import usage
import uvloop
from fleet import Fleet, running_fleet
from lean import Lean
from service import percentile
from throughput import PARAMETERS, lean_workers

from bo_service.client import Client


def command(server: str, processes: int, port: int) -> list[str]:
    """How a server is started with so many processes."""
    if server == "uvicorn":
        return [sys.executable, "-m", "bo_service", "up", "--port", str(port), "--processes", str(processes)]
    return [
        *(sys.executable, "-m", "granian", "--interface", "asgi", "--factory", "bo_service.main:create_app"),
        *("--port", str(port), "--workers", str(processes), "--loop", "uvloop", "--no-ws"),
    ]


def health(url: str, n_connections: int, seconds: float) -> list[float]:
    """Seconds of each call of a route that does nothing."""
    times: list[float] = []

    async def work() -> None:
        connection, until = Lean(url, None), time.perf_counter() + seconds
        while (start := time.perf_counter()) < until:
            status, _ = await connection.raw("GET", "/healthz")
            assert status == 200
            times.append(time.perf_counter() - start)
        connection.close()

    async def all_of_them() -> None:
        await asyncio.gather(*(work() for _ in range(n_connections)))

    uvloop.run(all_of_them())
    return times


def measure(fleet: Fleet, server: str, processes: int, options: argparse.Namespace) -> None:
    """Swap the server, load it, print two lines."""
    if "api" in fleet.members:
        fleet.kill("api")
        del fleet.members["api"]
    fleet.add("api", command(server, processes, fleet.api_port))
    fleet.wait_ready()
    spec = {"name": f"{server} {processes} {time.time()}", "parameters": PARAMETERS}
    with Client(fleet.url, fleet.key) as client:
        rest = {"metrics": [{"name": "loss", "goal": "minimize"}], "surrogate": {"name": "sobol"}}
        study = client.create_study(spec | rest).id
    lean_workers(fleet.url, fleet.key, study, options.workers, 3.0)
    with usage.measured() as used:
        times = health(fleet.url, options.workers, options.seconds)
    show(f"{server} x{processes} health", times, times, used, options.seconds)
    with usage.measured() as used:
        pairs = lean_workers(fleet.url, fleet.key, study, options.workers, options.seconds)
    show(f"{server} x{processes} loop", pairs, [claim for claim, _ in pairs], used, options.seconds)
    print(f"{'':18} HTTP processes, MB: {', '.join(f'{m:.0f}' for m in sorted(usage.megabytes('http')))}")


def show(name: str, done: list, times: list[float], used: usage.Usage, seconds: float) -> None:
    """Rate, percentiles, processor time each."""
    p50, p99 = (1e3 * percentile(times, share) for share in (0.5, 0.99))
    print(
        f"{name:18} {len(done) / seconds:7.1f}/s  p50 {p50:6.1f} ms  p99 {p99:6.1f} ms  "
        f"{used.milliseconds_each(len(done))}  (load average {os.getloadavg()[0]:.1f})",
        flush=True,
    )


def main() -> None:
    """Every server with every number of processes, in rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_fleet(Path(folder)) as fleet:
        fleet.add_bo("relay", "relay")
        fleet.add_bo("compute", "compute", "--name", "compute")
        for _ in range(options.rounds):
            for processes in options.processes:
                for server in ("uvicorn", "granian"):
                    measure(fleet, server, processes, options)


if __name__ == "__main__":
    main()
