"""Names come back in the order of the specification, whatever the database makes of JSON."""

from __future__ import annotations

from bo_service.domain.trial import TrialState
from bo_service.storage import rows
from tests.steps import claim, complete, new_study, run_jobs

PARAMETERS = [
    {"type": "float", "name": "zeta", "low": 0.0, "high": 1.0},
    {"type": "mixture", "name": "mixture", "components": [{"name": "web"}, {"name": "a"}, {"name": "code"}]},
    {"type": "int", "name": "a", "low": 1, "high": 8},
]


def test_parameters_shares_and_metrics_keep_their_order(services, project, make_spec) -> None:
    metrics = [{"name": name, "goal": "track"} for name in ("zoo", "a")]
    study = new_study(
        services,
        project,
        make_spec,
        parameters=PARAMETERS,
        metrics=[{"name": "loss", "goal": "minimize"}, *metrics],
    )
    run_jobs(services)
    (trial,) = claim(services, study)
    complete(services, trial, project, 1.0)
    rows._ORDERS.clear()
    with services.uow(read_only=True) as store:
        store.studies.find(project, study.id)
        (found,) = store.trials.page(study.id, states=[TrialState.COMPLETED]).items
        _, suggestion, *_ = store.suggestions.page(study.id, state=None, limit=10)
    for parameters in (found.parameters, suggestion.parameters):
        assert list(parameters) == ["zeta", "mixture", "a"]
        assert list(parameters["mixture"]) == ["web", "a", "code"]


def test_what_the_order_does_not_know_comes_last() -> None:
    assert list(rows.in_order({"b": 1, "x": 2, "a": 3}, {"a": (), "b": (), "c": ()})) == ["a", "b", "x"]
