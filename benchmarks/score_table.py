"""The scores of surrogates as Markdown: a table a problem, means over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final

Record = Mapping[str, Any]

COLUMNS: Final = (
    ("RMSE", "rmse", "{:.3f}"),
    ("NLL", "nll", "{:.2f}"),
    ("NLL of a normal", "nll_normal", "{:.2f}"),
    ("CRPS", "crps", "{:.3f}"),
    ("50 %", "coverage_50", "{:.0%}"),
    ("80 %", "coverage_80", "{:.0%}"),
    ("95 %", "coverage_95", "{:.0%}"),
    ("fit s", "fit_seconds", "{:.2f}"),
    ("MB", "megabytes", "{:.0f}"),
)


def latest(records: Sequence[Record]) -> dict[tuple[str, int, str, int], Record]:
    """The last record of each measurement, by problem, size, surrogate and seed."""
    return {(r["problem"], r["n"], r["surrogate"], r["seed"]): r for r in records}


def markdown(records: Sequence[Record], *, labels: Sequence[str], problems: Sequence[str]) -> str:
    """A table for each problem; a row where a fit ended with an error says so."""
    found = latest(records)
    parts = []
    for problem in problems:
        sizes = sorted({n for p, n, _, _ in found if p == problem})
        rows = [
            row
            for n in sizes
            for label in labels
            if (row := _row([r for (p, m, s, _), r in found.items() if (p, m, s) == (problem, n, label)]))
        ]
        if rows:
            head = ["n", "surrogate", "seeds", *(name for name, _, _ in COLUMNS)]
            rule = ["---:", "---", "---:"] + ["---:"] * len(COLUMNS)
            table = [head, rule, *rows]
            parts.append(f"### {problem}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in table))
    return "\n\n".join(parts)


def _row(records: list[Record]) -> list[str]:
    """The cells of one surrogate at one size."""
    if not records:
        return []
    good = [r for r in records if "error" not in r]
    start = [str(records[0]["n"]), records[0]["surrogate"], str(len(good))]
    errors = sorted({str(r["error"]) for r in records if "error" in r})
    if errors:
        start[2] += f" ({len(records) - len(good)} failed: {'; '.join(errors)[:120].replace('|', '/')})"
    return start + [form.format(fmean(r[key] for r in good)) if good else "-" for _, key, form in COLUMNS]
