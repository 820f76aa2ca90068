"""The curves of a study, a panel a problem, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from study_report import measure_name, shown
from study_statistics import BASELINES, Curves, curves

N_COLUMNS: Final = 3
FLOOR: Final = 1e-8
"""Where regrets of nothing are drawn on a logarithmic axis."""

BASELINE_STYLES: Final = {"gp": {"color": "black"}, "sobol": {"color": "grey", "linestyle": "--"}}


def draw_figures(
    records: Sequence[Mapping[str, Any]], *, folder: Path, iterations: int | None = None
) -> list[Path]:
    """Mean and standard error by number of evaluations; the files written."""
    import matplotlib as mpl

    mpl.use("Agg")
    # the same results give the same file
    mpl.rcParams["svg.hashsalt"] = "bnn-study"
    from matplotlib import pyplot as plt

    found = curves(records, iterations=iterations)
    if not found:
        return []
    labels = sorted({label for one in found for label in one.by_label}, key=lambda x: (x not in BASELINES, x))
    n_rows = -(-len(found) // N_COLUMNS)
    figure, axes = plt.subplots(
        n_rows, N_COLUMNS, figsize=(4.2 * N_COLUMNS, 3.1 * n_rows), squeeze=False, layout="constrained"
    )
    palette = plt.get_cmap("tab10" if len(labels) <= 12 else "tab20")
    styles = {label: {"color": palette(i % palette.N)} for i, label in enumerate(labels)} | BASELINE_STYLES
    for axis in axes.ravel()[len(found) :]:
        axis.remove()
    for axis, one in zip(axes.ravel(), found, strict=False):
        _panel(axis, one, [label for label in labels if label in one.by_label], styles)
    handles = [plt.Line2D([], [], label=label, **styles[label]) for label in labels]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(labels), 6), frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "bnn_study.png", folder / "bnn_study.svg"]
    for path in paths:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    return paths


def _panel(axis: Any, one: Curves, labels: Sequence[str], styles: Mapping[str, Mapping[str, Any]]) -> None:
    is_regret = one.problem.best is not None
    for label in labels:
        runs = np.stack(list(one.losses(label).values()))
        values = np.vectorize(lambda x: shown(one.problem, x))(runs)
        mean = values.mean(axis=0)
        steps = one.problem.n_initial + np.arange(len(mean))
        axis.plot(steps, np.maximum(mean, FLOOR) if is_regret else mean, linewidth=1.3, **styles[label])
        if len(values) > 1:
            error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
            low = np.maximum(mean - error, FLOOR) if is_regret else mean - error
            axis.fill_between(steps, low, mean + error, alpha=0.15, linewidth=0, color=styles[label]["color"])
    if is_regret:
        axis.set_yscale("log")
    axis.set_title(one.problem.name, fontsize=10)
    axis.set_xlabel("evaluations", fontsize=8)
    axis.set_ylabel(measure_name(one.problem), fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25)
