"""The study as Markdown: what was reached, how the surrogates compare with the baselines, and how they rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final

import numpy as np
from problems import Problem
from study_statistics import BASELINES, Comparison, Curves, comparisons, curves, mean_and_error

Record = Mapping[str, Any]

SIGNIFICANT: Final = 0.05


def measure_name(problem: Problem) -> str:
    """What the numbers of this problem are."""
    if len(problem.objectives) > 1:
        return "hypervolume" if problem.best is None else "missing hypervolume"
    if problem.best is not None:
        return "simple regret"
    return f"best value ({'larger' if problem.objectives[0].sign > 0 else 'smaller'} is better)"


def shown(problem: Problem, loss: float) -> float:
    """A loss as it is reported: where the best is not known, the value itself."""
    if problem.best is not None:
        return loss
    sign = problem.objectives[0].sign if len(problem.objectives) == 1 else 1.0
    return -sign * loss


def markdown(records: Sequence[Record], *, iterations: int | None = None) -> str:
    """All tables."""
    if not records:
        return "No results."
    found = curves(records, iterations=iterations)
    parts = [_results(found, records), *(_against(found, b) for b in BASELINES), _ranks(found)]
    return "\n\n".join(part for part in parts if part)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first two columns to the left."""
    rule = ["---", "---", *["---:"] * (len(head) - 2)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *rows])


def _results(found: Sequence[Curves], records: Sequence[Record]) -> str:
    parts = ["### Results"]
    for one in found:
        short = f"; {one.n_short} shorter runs left out" if one.n_short else ""
        parts.append(
            f"**{one.problem.name}** ({one.problem.summary}): {measure_name(one.problem)} after"
            f" {one.n_evaluations} evaluations, {one.problem.n_initial} of them the design{short}"
        )
        head = ["surrogate", "seeds", "final", "AUC", "s a batch", "s a run", "fallbacks"]
        by_final = sorted(
            one.by_label, key=lambda label, one=one: fmean(one.measured(label, "final").values())
        )
        parts.append(table(head, [_result(one, label, records) for label in by_final]))
    return "\n\n".join(parts)


def _result(one: Curves, label: str, records: Sequence[Record]) -> list[str]:
    cells = [label, str(len(one.by_label[label]))]
    for measure in ("final", "auc"):
        mean, error = mean_and_error(list(one.measured(label, measure).values()))
        cells.append(f"{shown(one.problem, mean):.4g}" + ("" if np.isnan(error) else f" ± {error:.2g}"))
    own = [
        r
        for r in records
        if (r["problem"], r["surrogate"]) == (one.problem.name, label)
        and r["n_evaluations"] >= one.n_evaluations
    ]
    fits = [r["median_fit_seconds"] for r in own if r["median_fit_seconds"] is not None]
    cells.append(f"{fmean(fits):.2f}" if fits else "-")
    cells.append(f"{fmean(r['wall_seconds'] for r in own):.0f}")
    cells.append(str(sum(sum(r["fallbacks"].values()) for r in own)))
    return cells


def _against(found: Sequence[Curves], baseline: str) -> str:
    final = comparisons(found, baseline, "final")
    area = comparisons(found, baseline, "auc")
    if not final:
        return ""
    rows = [
        [f.problem, f.label, _counts(f), _p(f), _counts(a), _p(a)] for f, a in zip(final, area, strict=True)
    ]
    head = ["problem", "surrogate", "final: won-tied-lost", "p", "AUC: won-tied-lost", "p"]
    return (
        f"### Against `{baseline}`\n\nSeed by seed; p of Wilcoxon's signed-rank test, after Holm's correction over"
        f" the {len(final)} comparisons of the column.\n\n{table(head, rows)}\n\n{_verdicts(area, baseline)}"
    )


def _counts(compared: Comparison) -> str:
    return f"{compared.wins}-{compared.ties}-{compared.losses}"


def _p(compared: Comparison) -> str:
    return f"{compared.adjusted:.3f}"


def _verdicts(area: Sequence[Comparison], baseline: str) -> str:
    """On how many problems a surrogate is better or worse, by AUC."""
    rows = []
    for label in dict.fromkeys(c.label for c in area):
        own = [c for c in area if c.label == label]
        firm = [c for c in own if c.adjusted < SIGNIFICANT]
        rows.append(
            [
                label,
                str(len(own)),
                str(sum(c.wins > c.losses for c in own)),
                str(sum(c.wins < c.losses for c in own)),
                str(sum(c.wins > c.losses for c in firm)),
                str(sum(c.wins < c.losses for c in firm)),
            ]
        )
    head = [
        f"AUC against `{baseline}`",
        "problems",
        "more seeds won",
        "more lost",
        f"better, p < {SIGNIFICANT}",
        f"worse, p < {SIGNIFICANT}",
    ]
    return table(head, rows)


def _ranks(found: Sequence[Curves]) -> str:
    """Mean ranks by AUC over the problems and seeds that all surrogates were run on."""
    labels = sorted({label for one in found for label in one.by_label})
    complete = [one for one in found if set(labels) == set(one.by_label)]
    ranks: list[list[float]] = []
    for one in complete:
        areas = [one.measured(label, "auc") for label in labels]
        for seed in sorted(set.intersection(*(set(a) for a in areas))):
            values = [a[seed] for a in areas]
            # a rank counts those ahead and half of those level
            ranks.append([1 + sum((w < v) + (w == v) / 2 for w in values) - 0.5 for v in values])
    if not ranks or len(labels) < 2:
        return ""
    means = np.array(ranks).mean(axis=0)
    rows = [[labels[i], str(len(complete)), f"{means[i]:.2f}"] for i in np.argsort(means, kind="stable")]
    return (
        f"### Ranks\n\nMean rank by AUC over {len(ranks)} pairs of problem and seed that every surrogate was run on;"
        f" 1 is best.\n\n{table(['surrogate', 'problems', 'mean rank'], rows)}"
    )
