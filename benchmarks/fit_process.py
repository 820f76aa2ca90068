"""One fit in a process of its own: its data, its time, the memory it took, and what its predictions are worth."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import re
import resource
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from arms import Arm
from numpy.typing import NDArray
from problems import find
from problems.tuning import N_TRAIN, TASKS, table
from scoring import predictive, scores

from surrogates.encoding import Encoding
from surrogates.protocol import Plugin
from surrogates.registry import plugin
from surrogates.sampling import random_configurations, space_filling

Array = NDArray[np.float64]

N_TEST: Final = 300
MEGABYTE: Final = 2**20
LIBRARIES: Final = ["torch", "botorch", "gpytorch", "scipy.stats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is fitted to what."""

    arm: Arm
    problem: str
    n: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Under what conditions."""

    seconds: float
    threads: int
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Features (n, d), and outputs (n,) standardised with the training outputs, larger is better."""

    encoding: Encoding
    train_X: Array
    train_y: Array
    test_X: Array
    test_y: Array


def found_plugin(name: str) -> Plugin:
    """An installed plug-in, or the one at `package.module:attribute`."""
    module, colon, attribute = name.partition(":")
    if not colon:
        return plugin(name)
    found = getattr(importlib.import_module(module), attribute)
    if not isinstance(found, Plugin):
        raise TypeError(f"{name} is no plug-in")
    return found


def data_of(problem_name: str, n: int, seed: int) -> Data:
    """The same for every surrogate."""
    problem = find(problem_name)
    (objective,) = problem.objectives
    rng = np.random.default_rng((seed, 5))
    if problem in TASKS:
        rows = table(problem)
        order = rng.permutation(len(rows))
        chosen = [*order[:n], *order[N_TRAIN:]]
        configurations = [rows[i][0] for i in chosen]
        values = np.array([rows[i][1] for i in chosen])
    else:
        configurations = [
            *space_filling(problem.space, n, seed=seed),
            *random_configurations(problem.space, N_TEST, rng=rng),
        ]
        evaluated = [problem.evaluate(c, seed + i) for i, c in enumerate(configurations)]
        values = np.array([found[objective.name] for found in evaluated])
    encoding = Encoding(problem.space)
    features = encoding.encode([problem.space.canonical(c) for c in configurations])
    signed = objective.sign * values
    spread = float(signed[:n].std(ddof=1)) or 1.0
    outputs = (signed - signed[:n].mean()) / spread
    return Data(
        encoding=encoding,
        train_X=features[:n],
        train_y=outputs[:n],
        test_X=features[n:],
        test_y=outputs[n:],
    )


def run_cell(cell: Cell, limits: Limits, *, folder: Path) -> dict[str, Any]:
    """What `fit_and_score` found, or {"error": why it did not end well}."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    process = context.Process(target=_work, args=(cell, limits, folder))
    process.start()
    process.join(limits.seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return {"error": f"not done after {limits.seconds:g} s"}
    result = folder / "result.json"
    if process.exitcode == 0 and result.exists():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    return {"error": last_words((folder / "stderr").read_text()) or f"ended with status {process.exitcode}"}


def last_words(log: str) -> str:
    """The line of a log that names the exception, else the last one."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [line for line in log.splitlines() if re.match(r"[\w.]+: ", line)]
    return (named or lines or [""])[-1][:300]


def _work(cell: Cell, limits: Limits, folder: Path) -> None:
    # whatever ends this process, its last words are kept for the report
    with (folder / "stderr").open("wb") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    found = fit_and_score(cell, limits)
    (folder / "result.json").write_text(json.dumps(found))


def fit_and_score(cell: Cell, limits: Limits) -> dict[str, Any]:
    """Scores, `fit_seconds` (build and fit), `predict_seconds` (300 points), `megabytes` (peak above the start)."""
    import torch

    torch.set_num_threads(limits.threads)
    warnings.simplefilter("ignore")
    data = data_of(cell.problem, cell.n, cell.seed)
    _load_libraries(cell, data, limits)
    baseline = _start_of_peak()
    started = time.perf_counter()
    model: Any = found_plugin(cell.arm.name).build(_request(cell, data, limits, n=cell.n))
    model.fit(torch.Generator().manual_seed(cell.seed))
    fitted = time.perf_counter()
    with torch.no_grad():
        posterior = model.posterior(torch.as_tensor(data.test_X))
        distribution = predictive(posterior, float(model.noise_variance()[0]), seed=cell.seed)
    predicted = time.perf_counter()
    peak = _peak()
    return scores(distribution, data.test_y) | {
        "fit_seconds": fitted - started,
        "predict_seconds": predicted - fitted,
        "megabytes": (peak - baseline) / MEGABYTE,
        "n_members": len(distribution.means),
        "versions": _versions(),
    }


def _request(cell: Cell, data: Data, limits: Limits, *, n: int) -> Any:
    import torch

    from surrogates.protocol import BuildRequest

    return BuildRequest(
        train_X=torch.as_tensor(data.train_X[:n]),
        train_Y=torch.as_tensor(data.train_y[:n, None]),
        train_Yvar=None,
        encoding=data.encoding,
        options=found_plugin(cell.arm.name).options.model_validate(dict(cell.arm.options)),
        device=limits.device,
    )


def _load_libraries(cell: Cell, data: Data, limits: Limits) -> None:
    """Have everything imported and used once, so that neither time nor memory of the fit counts it."""
    import torch

    from surrogates.gp.plugin import plugin as smallest

    found_plugin(cell.arm.name).build(_request(cell, data, limits, n=min(cell.n, 20)))
    gp = Cell(arm=Arm(label="gp", name="surrogates.gp.plugin:plugin"), problem=cell.problem, n=5, seed=0)
    model: Any = smallest.build(_request(gp, data, limits, n=5))
    model.fit(torch.Generator().manual_seed(0))
    with torch.no_grad():
        predictive(model.posterior(torch.as_tensor(data.test_X)), 1.0)


def _versions() -> Mapping[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "botorch", "gpytorch")}


def _start_of_peak() -> int:
    """Forget the peak so far where the system can; the memory in use now, bytes."""
    refs = Path("/proc/self/clear_refs")
    if refs.exists():
        try:
            refs.write_text("5")
        except OSError:
            # then the libraries' own peak while they were loaded hides smaller ones
            return _peak()
    return _peak()


def _peak() -> int:
    """The largest memory this process held, bytes."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)):
        return int(found[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # kilobytes on Linux, bytes on macOS
    return largest if sys.platform == "darwin" else largest * 1024
