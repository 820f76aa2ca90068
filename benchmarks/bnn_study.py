"""The study of Bayesian neural network surrogates, through the service's own loop.

Problems, batch sizes and designs of Li, Rudner and Wilson 2023, "A study of Bayesian neural network surrogates for
Bayesian optimization", as far as they need no download, against the Gaussian process of today (`gp`) and random
search (`sobol`). `run` starts a service, claims each batch with the Python client and tells its results; a line of
JSON for each finished (problem, surrogate, seed), so that it can be stopped and run again. `report` makes tables and
figures of the lines.

The first design is the same for all surrogates of a seed: scrambled Sobol points given with the study, since the
service's own begins with the centre of the space, which is the optimum of Ackley's function and lies on DTLZ's front.
A batch is told as a whole before the next is asked for, the study paused meanwhile, so that nothing is fitted to half
a batch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from arms import Arm, arm
from hypervolume import trajectory
from lines import append_record, read_records
from problems import MissingLibrary, Problem, find, names
from problems.catalogue import PAPER
from service import running_service
from study_figures import draw_figures
from study_report import BASELINES, markdown

from bo_service.client import ClaimedTrial, Client, Study
from surrogates.errors import UnknownSurrogate
from surrogates.registry import check_options
from surrogates.sampling import space_filling

RESULTS: Final = Path(__file__).parent / "results" / "bnn_study.jsonl"
WORKER: Final = "bnn-study"
WAIT_SECONDS: Final = 20.0
DESIGN_SEED: Final = 7_000_003
"""Added to the run's seed: the baseline draws its own points from the seed alone, and shall not repeat the design."""

SETTINGS: Final = {
    # a benchmark waits for the model, however long it takes
    "BO_FIT_DEADLINE_SECONDS": "86400",
    "BO_JOB_DEADLINE_SECONDS": "86400",
    # a design of 100 points in 400 dimensions
    "BO_MAX_BODY_MEGABYTES": "16",
}
LEASE_SECONDS: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Run:
    """One study."""

    problem: Problem
    arm: Arm
    seed: int
    n_evaluations: int

    def specification(self) -> dict[str, Any]:
        """The study of the problem's own parameters and metrics; its acquisition is the service's choice."""
        problem = self.problem
        design = space_filling(problem.space, problem.n_initial, seed=DESIGN_SEED + self.seed)
        return {
            "name": f"{problem.name}/{self.seed}/{time.time_ns()}",
            "parameters": list(problem.parameters),
            "metrics": problem.metrics,
            "initial": {"size": problem.n_initial, "points": design},
            "seed": self.seed,
            # with a full batch out, nothing is prepared ahead of its results
            "parallelism": max(problem.batch, 1),
            "retry": {"lease_seconds": LEASE_SECONDS, "max_attempts": 1},
            "surrogate": {"name": self.arm.name, "options": dict(self.arm.options)},
        }


@dataclass(slots=True)
class Log:
    """What a study went through; `values` are (evaluations, objectives), user units, in order."""

    values: list[list[float]] = field(default_factory=list)
    generators: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    waiting_seconds: float = 0.0
    evaluating_seconds: float = 0.0


def claimed(client: Client, study: Study, n: int) -> Sequence[ClaimedTrial]:
    """Exactly n trials, as soon as there are as many. Raises: SystemExit where the study has ended."""
    while True:
        claims = client.claim(study.id, WORKER, count=n, wait_seconds=WAIT_SECONDS)
        if len(claims.trials) == n:
            return sorted(claims.trials, key=lambda trial: trial.number)
        if not claims.trials and claims.retry_after_seconds is None:
            raise SystemExit(f"{study.name}: {claims.reason}")
        # asked again, the service gives back what is held, and what has come up since
        time.sleep(0.1)


def do_batch(client: Client, study: Study, run: Run, n: int, log: Log) -> None:
    """Claim n trials, pause the study, evaluate them all, and tell their results."""
    start = time.perf_counter()
    trials = claimed(client, study, n)
    client.pause(study.id)
    middle = time.perf_counter()
    names = [objective.name for objective in run.problem.objectives]
    results = []
    for trial in trials:
        # the noise of an evaluation follows from the run and the trial alone
        noise_seed = 100_000 * run.seed + trial.number
        results.append(run.problem.evaluate(trial.parameters, noise_seed))
        log.generators[str(trial.provenance.get("generator"))] += 1
        if reason := trial.provenance.get("fallback_reason"):
            log.fallbacks[str(reason)[:200]] += 1
    end = time.perf_counter()
    for trial, result in zip(trials, results, strict=True):
        client.complete(trial, result)
        log.values.append([result[name] for name in names])
    log.waiting_seconds += middle - start
    log.evaluating_seconds += end - middle


def batches(run: Run) -> Iterator[int]:
    """The size of each batch: the design first, then the iterations."""
    left = run.problem.n_initial
    while left > 0:
        yield min(left, run.problem.batch)
        left -= run.problem.batch
    n_iterations = (run.n_evaluations - run.problem.n_initial) // run.problem.batch
    yield from [run.problem.batch] * n_iterations


def optimised(client: Client, run: Run) -> dict[str, Any]:
    """Run one study to its end; its record."""
    started = time.perf_counter()
    study = client.create_study(run.specification())
    log = Log()
    for i, n in enumerate(batches(run)):
        if i:
            client.resume(study.id)
        do_batch(client, study, run, n, log)
    # still paused: nobody fits a model for a batch that is not asked for
    client.archive(study.id)
    fit_seconds = [
        fit["seconds"] for fit in client.fits(study.id, limit=500) if fit["diagnostics"].get("acquisition")
    ]
    return {
        "problem": run.problem.name,
        "surrogate": run.arm.label,
        "plugin": run.arm.name,
        "options": dict(run.arm.options),
        "seed": run.seed,
        "n_initial": run.problem.n_initial,
        "batch": run.problem.batch,
        "n_evaluations": len(log.values),
        "values": [[shortened(v) for v in row] for row in log.values],
        "best": [shortened(v) for v in best_so_far(run.problem, log.values)],
        "generators": dict(log.generators),
        "fallbacks": dict(log.fallbacks),
        "wall_seconds": time.perf_counter() - started,
        "waiting_seconds": log.waiting_seconds,
        "evaluating_seconds": log.evaluating_seconds,
        "n_fits": len(fit_seconds),
        "median_fit_seconds": statistics.median(fit_seconds) if fit_seconds else None,
    }


def shortened(value: float) -> float:
    """To seven digits: the lines of all runs are kept beside the program."""
    return float(f"{value:.7g}")


def best_so_far(problem: Problem, values: Sequence[Sequence[float]]) -> list[float]:
    """After each evaluation the best value, or the hypervolume where there are several objectives; user units."""
    signs = np.array([objective.sign for objective in problem.objectives])
    signed = np.array(values) * signs
    if len(signs) == 1:
        best: list[float] = (signs[0] * np.maximum.accumulate(signed[:, 0])).tolist()
        return best
    references = np.array([objective.reference for objective in problem.objectives], dtype=float)
    return trajectory(signed, signs * references)


def wanted(options: argparse.Namespace) -> list[Run]:
    """The runs that were asked for and that the results lack, seed after seed."""
    done: Counter[tuple[str, str, int]] = Counter()
    for record in read_records(options.results):
        key = (record["problem"], record["surrogate"], record["seed"])
        done[key] = max(done[key], record["n_evaluations"])
    found = []
    for seed in options.seeds:
        for name in options.problems:
            problem = find(name)
            n = problem.n_evaluations(options.iterations)
            found += [
                Run(problem, chosen, seed, n)
                for chosen in options.surrogates
                if done[name, chosen.label, seed] < n
            ]
    return found


def require_plugins(arms: Sequence[Arm]) -> None:
    """Raises: SystemExit where a surrogate is not installed, or does not take its options."""
    for chosen in arms:
        try:
            problems = check_options(chosen.name, chosen.options)
        except UnknownSurrogate as error:
            raise SystemExit(str(error)) from None
        if problems:
            raise SystemExit(f"{chosen.label}: {'; '.join(map(str, problems))}")


def run_all(options: argparse.Namespace) -> None:
    """Do every run that the results lack, on one service."""
    runs = wanted(options)
    absent = set()
    for problem in {run.problem.name: run.problem for run in runs}.values():
        try:
            problem.require_libraries()
        except MissingLibrary as error:
            absent.add(problem.name)
            print(f"left out: {error}", file=sys.stderr)
    runs = [run for run in runs if run.problem.name not in absent]
    if not runs:
        print("nothing left to run", file=sys.stderr)
        return
    require_plugins(options.surrogates)
    settings = SETTINGS | {"BO_COMPUTE_THREADS": str(options.threads)}
    with running_service(settings=settings) as (client, _):
        for i, run in enumerate(runs, start=1):
            record = optimised(client, run)
            append_record(options.results, record)
            print(
                f"{i}/{len(runs)} {run.problem.name:12} {run.arm.label:16} seed {run.seed}"
                f"  best {record['best'][-1]:.5g}  {record['wall_seconds']:.1f} s"
                f" ({record['evaluating_seconds']:.1f} s of it evaluating)"
                f"  {sum(record['fallbacks'].values())} fallbacks",
                file=sys.stderr,
                flush=True,
            )


def report(options: argparse.Namespace) -> None:
    """Tables, and figures where a folder is given."""
    records = [r for r in read_records(options.results) if r["problem"] in options.problems]
    if options.surrogates:
        labels = {chosen.label for chosen in options.surrogates} | set(BASELINES)
        records = [r for r in records if r["surrogate"] in labels]
    if options.seeds:
        records = [r for r in records if r["seed"] in options.seeds]
    text = markdown(records, iterations=options.iterations)
    if options.figures is not None:
        for path in draw_figures(records, folder=options.figures, iterations=options.iterations):
            print(path, file=sys.stderr)
    if options.table is None:
        print(text)
    else:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(text + "\n")


def seeds(text: str) -> list[int]:
    """`5` as 0 to 4, `3-6` and `1,4` as they say."""
    if "-" in text:
        first, _, last = text.partition("-")
        return list(range(int(first), int(last) + 1))
    if "," in text:
        return [int(part) for part in text.split(",")]
    return list(range(int(text)))


def arguments() -> argparse.Namespace:
    """The command line."""
    shared = argparse.ArgumentParser(add_help=False)
    paper = [problem.name for problem in PAPER]
    shared.add_argument("--problems", nargs="+", default=paper, choices=names(), metavar="PROBLEM")
    shared.add_argument("--iterations", type=int, help="cap on the iterations after the design")
    shared.add_argument("--results", type=Path, default=RESULTS)
    arm_help = 'NAME, NAME{"option": 1} or LABEL=NAME{...}'
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", parents=[shared])
    running.add_argument(
        "--surrogates", nargs="+", type=arm, default=[arm(b) for b in BASELINES], help=arm_help
    )
    running.add_argument("--seeds", type=seeds, default=seeds("5"), help="5 for 0 to 4, 3-6, or 1,4")
    running.add_argument("--threads", type=int, default=1, help="of a fit")
    running.set_defaults(act=run_all)
    reporting = commands.add_parser("report", parents=[shared])
    reporting.add_argument("--surrogates", nargs="+", type=arm, help=f"{arm_help}; all by default")
    reporting.add_argument("--seeds", type=seeds, help="all by default")
    reporting.add_argument("--table", type=Path, help="write the tables here instead of printing them")
    reporting.add_argument("--figures", type=Path, help="draw into this folder")
    reporting.set_defaults(act=report)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    options.act(options)


if __name__ == "__main__":
    main()
