"""How well each surrogate predicts: RMSE, NLL, CRPS, coverage, seconds and memory of a fit, by problem and data size.

Plug-ins are built through the registry, or from `package.module:attribute` where they are not installed, without the
service: torch, botorch, gpytorch, NumPy and SciPy are enough (scikit-learn to make the tables of the tuning tasks).
Features as the service encodes them. Outputs, training and test alike, are signed so that larger is better and
standardised with the mean and standard deviation of the training outputs; scores are in these units, so that an RMSE
near 1 means that nothing was learned. The service's power transform of outputs is not applied. Training points are
scrambled Sobol points, the 300 test points random ones; a tuning task gives 200 of its table for training and the
other 300 for the test. Each fit runs in a process of its own, on one thread by default.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from arms import Arm, arm
from fit_process import Cell, Limits, found_plugin, run_cell
from lines import append_record, read_records
from problems import MissingLibrary, find, names
from problems.tuning import N_TRAIN, TASKS, table
from pydantic import ValidationError
from score_table import markdown

from surrogates.errors import UnknownSurrogate

PROBLEMS: Final = (
    "branin",
    "hartmann6",
    "ackley10",
    "poly200",
    "network400",
    "tune-svm",
    "tune-boosting",
    "tune-mlp",
)
SIZES: Final = (20, 60, 200, 1000, 5000)
RESULTS: Final = Path(__file__).parent / "results" / "surrogate_scores.jsonl"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One measurement."""

    arm: Arm
    problem: str
    n: int
    seed: int

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.arm.label, self.problem, self.n, self.seed


def sensible(chosen: Arm, sizes: list[int], *, largest: int | None) -> list[int]:
    """The sizes this plug-in says it is made for, none above its problem's data."""
    abilities = found_plugin(chosen.name).abilities
    most = min(
        (limit for limit in (abilities.max_sensible_observations, largest) if limit is not None),
        default=max(sizes),
    )
    return [n for n in sizes if abilities.min_observations <= n <= most]


def wanted(options: argparse.Namespace) -> Iterator[Wanted]:
    """Every measurement that was asked for, small sizes first."""
    for n in options.sizes:
        for seed in range(options.seeds):
            for name in options.problems:
                for chosen in options.surrogates:
                    largest = N_TRAIN if find(name) in TASKS else None
                    if n in sensible(chosen, options.sizes, largest=largest):
                        yield Wanted(chosen, name, n, seed)


def measured(item: Wanted, limits: Limits) -> dict[str, Any]:
    """The scores of one fit, or the error that ended it."""
    cell = Cell(arm=item.arm, problem=item.problem, n=item.n, seed=item.seed)
    with tempfile.TemporaryDirectory() as folder:
        found = run_cell(cell, limits, folder=Path(folder))
    return {
        "surrogate": item.arm.label,
        "plugin": item.arm.name,
        "options": dict(item.arm.options),
        "problem": item.problem,
        "n": item.n,
        "seed": item.seed,
        **asdict(limits),
        **found,
    }


def is_ready(problem_name: str) -> bool:
    """Whether the problem can be evaluated here; a table is made now, outside of any fit's time."""
    problem = find(problem_name)
    try:
        if problem in TASKS:
            table(problem)
        else:
            problem.require_libraries()
    except MissingLibrary as error:
        print(f"left out: {error}", file=sys.stderr)
        return False
    return True


def require_plugins(arms: Sequence[Arm]) -> None:
    """Raises: SystemExit where a surrogate cannot be found, has no model or does not take its options."""
    for chosen in arms:
        try:
            found = found_plugin(chosen.name)
            found.options.model_validate(dict(chosen.options))
        except (UnknownSurrogate, ImportError, AttributeError, TypeError, ValidationError) as error:
            raise SystemExit(f"{chosen.label}: {error}") from None
        if not found.abilities.needs_model:
            raise SystemExit(f"{chosen.label} has no model whose predictions could be scored")


def measure_all(options: argparse.Namespace) -> None:
    """Measure what the results file lacks; one that ended with an error is tried again."""
    done = {
        (r["surrogate"], r["problem"], r["n"], r["seed"])
        for r in read_records(options.results)
        if "error" not in r
    }
    limits = Limits(seconds=options.limit_seconds, threads=options.threads, device=options.device)
    left = [item for item in wanted(options) if item.key not in done]
    absent = [name for name in dict.fromkeys(item.problem for item in left) if not is_ready(name)]
    for item in left:
        if item.problem in absent:
            continue
        started = time.perf_counter()
        record = measured(item, limits)
        append_record(options.results, record)
        outcome = record.get("error") or f"rmse {record['rmse']:.3f}  nll {record['nll']:.3f}"
        spent = time.perf_counter() - started
        print(
            f"{item.problem:14} n {item.n:5d} seed {item.seed} {item.arm.label:20} {outcome}  ({spent:.1f} s)",
            file=sys.stderr,
            flush=True,
        )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--surrogates",
        nargs="+",
        type=arm,
        default=[arm("gp")],
        help='NAME, NAME{"option": 1}, LABEL=NAME{...}, or package.module:attribute in the place of NAME',
    )
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=names(), metavar="PROBLEM")
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 0")
    parser.add_argument("--limit-seconds", type=float, default=900.0, help="of one fit with its predictions")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="by torch's name, handed to the plug-in")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="JSON lines; what is there is not repeated"
    )
    parser.add_argument("--table", type=Path, help="write the Markdown table here instead of printing it")
    parser.add_argument("--only-table", action="store_true", help="measure nothing")
    return parser.parse_args()


def main() -> None:
    """Measure, then the table of everything asked for."""
    options = arguments()
    several = [name for name in options.problems if len(find(name).objectives) > 1]
    if several:
        raise SystemExit(f"only problems of one objective: not {', '.join(several)}")
    if not options.only_table:
        require_plugins(options.surrogates)
        measure_all(options)
    labels = [a.label for a in options.surrogates]
    records = [
        r
        for r in read_records(options.results)
        if r["surrogate"] in labels and r["problem"] in options.problems and r["n"] in options.sizes
    ]
    text = markdown(records, labels=labels, problems=options.problems)
    if options.table is None:
        print(text)
    else:
        options.table.write_text(text + "\n")


if __name__ == "__main__":
    main()
