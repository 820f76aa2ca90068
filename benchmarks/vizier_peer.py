"""Ask and tell against OSS Vizier's service, for throughput.py: run by an interpreter that has google-vizier.

Arguments: client processes, threads of each, seconds. The service keeps its trials in SQLite in memory, its default,
and draws random points; every client is a thread with an id of its own. Prints trials a second.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

WARM_UP_SECONDS = 3.0


def problem() -> Any:
    """Four floats and one objective."""
    from vizier.service import pyvizier as vz

    config = vz.StudyConfig(algorithm="RANDOM_SEARCH")
    for i in range(4):
        config.search_space.root.add_float_param(f"x{i}", 0.0, 1.0)
    config.metric_information.append(vz.MetricInformation("loss", goal=vz.ObjectiveMetricGoal.MINIMIZE))
    return config


def worker(endpoint: str, name: str, n_threads: int, seconds: float, out: multiprocessing.Queue) -> None:
    """Ask and tell until the time is over; the warm-up is not counted."""
    from vizier.service import clients
    from vizier.service import pyvizier as vz

    clients.environment_variables.server_endpoint = endpoint
    counted_from = time.monotonic() + WARM_UP_SECONDS
    until = counted_from + seconds

    def work(thread: int) -> int:
        study = clients.Study.from_study_config(problem(), owner="bench", study_id="t")
        n = 0
        while (now := time.monotonic()) < until:
            for trial in study.suggest(count=1, client_id=f"{name}-{thread}"):
                value = sum(float(x) for x in trial.parameters.values())
                trial.complete(vz.Measurement(metrics={"loss": value}))
                n += now >= counted_from
        return n

    with ThreadPoolExecutor(n_threads) as pool:
        out.put(sum(pool.map(work, range(n_threads))))


def main() -> None:
    """Starts the service in this process, the clients in others."""
    from vizier.service import servers

    n_processes, n_threads, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    server = servers.DefaultVizierServer(database_url="sqlite:///:memory:")
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    processes = [
        context.Process(target=worker, args=(server.endpoint, f"w{i}", n_threads, seconds, out))
        for i in range(n_processes)
    ]
    for process in processes:
        process.start()
    n = sum(out.get(timeout=seconds + 120) for _ in processes)
    for process in processes:
        process.join()
    print(n / seconds)


if __name__ == "__main__":
    main()
