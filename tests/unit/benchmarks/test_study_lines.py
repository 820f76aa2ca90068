"""What a study compares, keeps and concludes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from arms import arm
from bnn_study import Run, batches, best_so_far, seeds
from lines import append_record, read_records
from problems import find
from study_figures import draw_figures
from study_report import markdown
from study_statistics import comparisons, curves, holm, loss


def record(problem: str, label: str, seed: int, best: list[float], **more) -> dict:
    return {
        "problem": problem,
        "surrogate": label,
        "seed": seed,
        "n_evaluations": len(best),
        "best": best,
        "fallbacks": {},
        "median_fit_seconds": None,
        "wall_seconds": 1.0,
    } | more


def test_an_arm_is_read_with_label_and_options() -> None:
    assert arm("gp").label == arm("gp").name == "gp"
    small = arm('small=hmc{"width": 8}')
    assert (small.label, small.name, small.options) == ("small", "hmc", {"width": 8})
    assert arm('hmc{"b": 1, "a": [2]}').label == 'hmc{"a":[2],"b":1}'
    assert arm("my.module:plugin").name == "my.module:plugin"
    with pytest.raises(ValueError, match="LABEL=NAME"):
        arm("gp {")


def test_a_line_cut_short_is_passed_over_and_written_over(tmp_path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    append_record(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": 2, "b"')
    assert read_records(path) == [{"a": 1}]
    append_record(path, {"a": 3})
    assert read_records(path) == [{"a": 1}, {"a": 3}]
    path.write_text(json.dumps({"a": 4}))
    append_record(path, {"a": 5})
    assert read_records(path) == [{"a": 4}, {"a": 5}]


def test_the_design_is_the_seeds_alone_and_avoids_the_centre() -> None:
    problem = find("ackley10")
    first, second = (Run(problem, arm(name), 3, 200).specification() for name in ("gp", "sobol"))
    assert first["initial"] == second["initial"]
    assert first["initial"] != Run(problem, arm("gp"), 4, 200).specification()["initial"]
    assert min(problem.evaluate(p, 0)["value"] for p in first["initial"]["points"]) > 10


def test_batches_are_the_design_and_then_the_iterations() -> None:
    assert list(batches(Run(find("pest"), arm("gp"), 0, 28))) == [4] * 7
    assert list(batches(Run(find("brusselator"), arm("gp"), 0, 7))) == [1] * 7


def test_seeds_are_read_as_a_number_a_range_or_a_list() -> None:
    assert seeds("3") == [0, 1, 2]
    assert seeds("3-5") == [3, 4, 5]
    assert seeds("1,4") == [1, 4]


def test_the_best_so_far_follows_the_goal() -> None:
    assert best_so_far(find("branin"), [[3.0], [5.0], [1.0]]) == [3.0, 3.0, 1.0]
    assert best_so_far(find("poly200"), [[3.0], [5.0], [1.0]]) == [3.0, 5.0, 5.0]
    two = best_so_far(find("branincurrin"), [[18.0, 5.0], [8.0, 5.0], [9.0, 1.0]])
    assert two == [0.0, 10.0, 10.0 + 9.0 * 4.0]


def test_a_loss_is_smaller_is_better_on_every_problem() -> None:
    np.testing.assert_allclose(loss(find("branin"), np.array([1.397887])), [1.0], atol=1e-5)
    np.testing.assert_allclose(loss(find("poly200"), np.array([find("poly200").best - 2])), [2.0])
    np.testing.assert_allclose(loss(find("pest"), np.array([17.0])), [17.0])
    np.testing.assert_allclose(loss(find("network400"), np.array([17.0])), [-17.0])
    np.testing.assert_allclose(loss(find("dtlz1"), np.array([find("dtlz1").best - 3])), [3.0])
    np.testing.assert_allclose(loss(find("dtlz5"), np.array([900.0])), [-900.0])


def test_holms_correction_is_step_down_and_monotone() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def runs(label: str, shift: float, n_seeds: int) -> list[dict]:
    rng = np.random.default_rng(5)
    return [
        record("pest", label, seed, [20.0] * 20 + [18.0 - shift + rng.normal() / 10] * 4)
        for seed in range(n_seeds)
    ]


def test_a_surrogate_that_wins_every_seed_is_told_apart_from_chance() -> None:
    (found,) = curves([*runs("better", 1.0, 8), *runs("gp", 0.0, 8)])
    (compared,) = comparisons([found], "gp", "auc")
    assert (compared.wins, compared.ties, compared.losses) == (8, 0, 0)
    assert compared.p == pytest.approx(2 / 2**8)
    (same,) = comparisons(curves([*runs("same", 0.0, 8), *runs("gp", 0.0, 8)]), "gp", "final")
    assert (same.ties, same.p) == (8, 1.0)


def test_shorter_runs_are_left_out_and_counted() -> None:
    records = [record("pest", "gp", 0, [20.0] * 28), record("pest", "gp", 1, [20.0] * 24)]
    (found,) = curves(records)
    assert list(found.by_label["gp"]) == [0]
    assert found.n_short == 1
    (capped,) = curves(records, iterations=1)
    assert (capped.n_evaluations, capped.n_short, len(capped.by_label["gp"])) == (24, 0, 2)


def test_the_report_has_tables_and_figures(tmp_path) -> None:
    pytest.importorskip("matplotlib", reason="the figures are drawn by matplotlib")
    records = [*runs("better", 1.0, 6), *runs("gp", 0.0, 6), *runs("sobol", -1.0, 6)]
    text = markdown(records)
    for part in ("### Results", "### Against `gp`", "### Against `sobol`", "### Ranks", "6-0-0"):
        assert part in text
    assert text.index("| better | 6 |") < text.index("| gp | 6 |") < text.index("| sobol | 6 |")
    paths = draw_figures(records, folder=tmp_path / "figures")
    assert [p.suffix for p in paths] == [".png", ".svg"]
    assert all(p.stat().st_size > 1000 for p in paths)
