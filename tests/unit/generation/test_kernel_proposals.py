"""The surrogates with exact posteriors answer through Ax themselves, whatever is asked."""

from __future__ import annotations

from typing import Any

import pytest

from bo_service.domain.proposal import Evaluated, Measurement, ProposalRequest, StudyView
from bo_service.domain.spec import StudySpec
from bo_service.generation.strategy import propose
from surrogates.sampling import space_filling

PARAMETERS = [
    {"type": "float", "name": "x", "low": 0, "high": 1},
    {"type": "float", "name": "y", "low": 0, "high": 1},
    {"type": "categorical", "name": "c", "choices": ["a", "b"]},
]
ONE = [{"name": "loss", "goal": "minimize"}]
TWO = [{"name": "loss", "goal": "minimize", "threshold": 2}, {"name": "gain", "goal": "maximize"}]
BOUNDED = [{"name": "loss", "goal": "minimize"}, {"name": "gain", "goal": "constraint", "upper": 1.5}]
SURROGATES: dict[str, dict[str, Any]] = {
    "nngp": {},
    "student-t": {},
    "laplace": {"width": 8, "n_restarts": 2, "n_rounds": 3},
    "neural-linear": {"width": 16, "depth": 1, "n_members": 4, "n_steps": 20},
    "dkl": {"width": 8, "n_steps": 20},
}


def view_of(name: str, metrics: list[dict[str, Any]], *, n_pending: int, sem: float | None) -> StudyView:
    spec = StudySpec.model_validate(
        {
            "name": "s",
            "parameters": PARAMETERS,
            "metrics": metrics,
            "surrogate": {"name": name, "options": SURROGATES[name]},
        }
    )
    points = space_filling(spec.space, 10 + n_pending, seed=1)

    def measured(p: Any) -> dict[str, Measurement]:
        loss = (p["x"] - 0.3) ** 2 + p["y"] + (p["c"] == "a")
        found = {"loss": loss, "gain": p["x"] + p["y"]}
        return {m["name"]: Measurement(value=found[m["name"]], sem=sem) for m in metrics}

    evaluated = tuple(
        Evaluated(number=i, parameters=p, measurements=measured(p)) for i, p in enumerate(points[:10])
    )
    return StudyView(
        spec=spec,
        seed=1,
        data_version=10,
        evaluated=evaluated,
        pending=tuple(points[10:]),
        n_started=10 + n_pending,
    )


@pytest.mark.parametrize(
    ("metrics", "n_pending", "count", "sem"),
    [(ONE, 0, 1, None), (ONE, 2, 2, 0.1), (BOUNDED, 0, 1, None), (TWO, 1, 2, None)],
    ids=["one", "noisy batch beside pending ones", "a bounded outcome", "two objectives"],
)
@pytest.mark.parametrize("name", SURROGATES)
def test_it_proposes_without_falling_back(name, metrics, n_pending, count, sem) -> None:
    view = view_of(name, metrics, n_pending=n_pending, sem=sem)
    first = propose(view, ProposalRequest(count=count), warm_state=None)
    assert [c.fallback_reason for c in first.candidates] == [None] * count
    assert all(c.generator.startswith(f"{name}:") for c in first.candidates)
    assert all(c.predictions for c in first.candidates)
    warm = propose(view, ProposalRequest(count=count), warm_state=first.fit.state if first.fit else None)
    assert [c.fallback_reason for c in warm.candidates] == [None] * count
