"""The main job, start to end: a service on SQLite, a real study, two objective workers, and random search beside.

Run by `make demo`. Nothing is left running; the data stay where the last lines say.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import tune_digits
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bo_service.client import BoServiceError, Client, Study

FOLDER = Path(__file__).resolve().parent
START_SECONDS = 60
console = Console()


def start_service(home: Path) -> subprocess.Popen[bytes]:
    """`bo up` on a free port with its data in `home`; returns when it answers."""
    home.mkdir(parents=True, exist_ok=True)
    os.environ["BO_HOME"] = str(home)
    with (home / "service.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "bo_service", "up", "--port", "0"], stdout=log, stderr=log
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        # the service writes its address and key there, where every client on this machine finds them
        if (home / "credentials.json").exists():
            try:
                with Client(patience_seconds=0.2) as client:
                    client.info()
            except BoServiceError:
                time.sleep(0.1)
            else:
                return process
        time.sleep(0.1)
    process.terminate()
    raise SystemExit(f"the service did not start; see {home / 'service.log'}")


def start_workers(study: Study, n_slots: int) -> subprocess.Popen[bytes]:
    """`bo work` on the objective of tune_digits.py."""
    command = [sys.executable, "-m", "bo_service", "work", "--study", study.id]
    command += ["--objective", "tune_digits:objective", "--slots", str(n_slots)]
    return subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run(client: Client, spec: dict[str, Any], *, label: str, n_slots: int) -> Study:
    """Create the study, work on it to its end, and show how it goes."""
    study = client.create_study(spec)
    workers = start_workers(study, n_slots)
    columns = (
        TextColumn(f"{label:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("best log loss {task.fields[best]}"),
    )
    try:
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(label, total=spec["stopping"]["max_trials"], best="-")
            while study.state == "ACTIVE":
                if workers.poll() not in (None, 0):
                    raise SystemExit(f"the workers ended with status {workers.returncode}")
                time.sleep(0.25)
                study = client.study(study.id)
                best = "-" if study.best_value is None else f"{study.best_value:.4f}"
                bar.update(task, completed=study.n_closed, best=best)
    finally:
        workers.terminate()
        workers.wait()
    return study


def main() -> None:
    """The whole demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40, help="budget of each search")
    parser.add_argument("--workers", type=int, default=2, help="objective slots")
    parser.add_argument("--data-dir", type=Path, default=Path("demo-data"), help="where the data go")
    options = parser.parse_args()
    home = (options.data_dir / time.strftime("%Y%m%d-%H%M%S")).resolve()
    console.print("starting the service on SQLite ...")
    service = start_service(home)
    try:
        with Client() as client:
            console.print(
                f"running at {client.url}; tuning a neural network on scikit-learn's digits, 6 parameters"
            )
            budget = {"stopping": {"max_trials": options.trials}}
            found = run(client, tune_digits.SPEC | budget, label="Gaussian process", n_slots=options.workers)
            random = tune_digits.SPEC | budget | {"name": "digits-random", "surrogate": {"name": "sobol"}}
            baseline = run(client, random, label="random search (Sobol)", n_slots=options.workers)
    finally:
        service.terminate()
        service.wait()
    report(found, baseline, home)


def report(found: Study, baseline: Study, home: Path) -> None:
    """What was found, beside random search, and where everything lies."""
    assert found.best is not None
    console.print("\n[bold]best configuration[/bold]")
    console.print(json.dumps(found.best.parameters, indent=2), highlight=False)
    for label, study in (("this search", found), ("random search, same budget, same run", baseline)):
        assert study.best is not None
        metrics = study.best.metrics
        console.print(
            f"{label:38} log loss {metrics['log_loss']:.4f}, accuracy {metrics['accuracy']:.4f}"
            f" (trial {study.best.number} of {study.n_closed})",
            highlight=False,
        )
    console.print(
        f"\nthe data lie in {home}; look at them with\n  BO_HOME={home} bo up\n  BO_HOME={home} bo study list"
    )


if __name__ == "__main__":
    main()
