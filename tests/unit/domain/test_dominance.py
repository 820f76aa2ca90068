"""The front kept trial by trial equals the front computed from all."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from bo_service.domain.dominance import dominates, front_after, is_feasible
from bo_service.domain.ids import StudyId, TrialId
from bo_service.domain.proposal import Measurement
from bo_service.domain.spec import StudySpec
from bo_service.domain.trial import Provenance, Trial, TrialSource, TrialState

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def spec(*goals: str) -> StudySpec:
    metrics = [{"name": f"m{i}", "goal": goal} for i, goal in enumerate(goals)]
    metrics.append({"name": "c", "goal": "constraint", "upper": 5})
    return StudySpec.model_validate(
        {"name": "s", "parameters": [{"type": "bool", "name": "b"}], "metrics": metrics}
    )


def trial(number: int, values: tuple[int, ...]) -> Trial:
    names = [f"m{i}" for i in range(len(values) - 1)] + ["c"]
    return Trial(
        id=TrialId(str(number)),
        study_id=StudyId("s"),
        number=number,
        state=TrialState.COMPLETED,
        parameters={},
        source=TrialSource.ATTACHED,
        provenance=Provenance(generator="user"),
        measurements={n: Measurement(value=float(v)) for n, v in zip(names, values, strict=True)},
        created_at=NOW,
        updated_at=NOW,
    )


@given(st.lists(st.tuples(*[st.integers(0, 6)] * 3), max_size=25))
def test_two_objectives_and_a_constraint(rows: list[tuple[int, int, int]]) -> None:
    study = spec("maximize", "minimize")
    front: list[Trial] = []
    for number, row in enumerate(rows):
        joins, thrown = front_after(new := trial(number, row), front, study)
        if joins:
            front = [t for t in front if t not in thrown] + [new]
    feasible = {(float(a), -float(b)) for a, b, c in rows if c <= 5}
    expected = {p for p in feasible if not any(dominates(q, p) for q in feasible)}
    kept = [(t.measurements["m0"].value, -t.measurements["m1"].value) for t in front]
    assert set(kept) == expected
    assert len(kept) == len(expected)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), max_size=25))
def test_one_objective_keeps_the_first_best(rows: list[tuple[int, int]]) -> None:
    study = spec("minimize")
    front: list[Trial] = []
    for number, row in enumerate(rows):
        joins, thrown = front_after(new := trial(number, row), front, study)
        front = [t for t in front if t not in thrown] + ([new] if joins else [])
    feasible = [(value, number) for number, (value, c) in enumerate(rows) if c <= 5]
    assert [t.number for t in front] == ([min(feasible)[1]] if feasible else [])


def test_a_missing_bounded_metric_is_not_feasible() -> None:
    assert not is_feasible({"m0": Measurement(value=1.0)}, spec("minimize"))
