"""Freshness: a lone worker gets points made from all the data, many workers never wait for one another."""

from __future__ import annotations

import pytest

from bo_service.client import Client


@pytest.fixture
def client(service):
    with Client(service.url, service.key) as found:
        yield found


def gp(make_spec, **changes):
    parameters = [{"type": "float", "name": f"x{i}", "low": 0, "high": 1} for i in range(3)]
    return make_spec(parameters=parameters, surrogate={"name": "gp"}, initial={"size": 4}, **changes)


def loss(trial) -> float:
    return sum((v - 0.3) ** 2 for v in trial.parameters.values())


def test_a_lone_worker_always_gets_a_point_from_all_the_data(client: Client, make_spec) -> None:
    study = client.create_study(gp(make_spec)).id
    for n_known in range(8):
        (trial,) = client.claim(study, "lone", wait_seconds=30).trials
        if trial.provenance["generator"].startswith("gp:"):
            assert trial.provenance["data_version"] == n_known
        client.complete(trial, {"loss": loss(trial)})
    generators = [t.provenance["generator"] for t in client.trials(study)]
    assert generators == ["initial:centre", *["initial:sobol"] * 3, *["gp:logei"] * 4]


def test_with_several_workers_points_lie_ready_and_differ(client: Client, make_spec) -> None:
    study = client.create_study(gp(make_spec)).id
    running = {}
    for _ in range(6):
        for name in ("a", "b", "c"):
            if name in running:
                client.complete(running[name], {"loss": loss(running[name])})
            (running[name],) = client.claim(study, name, wait_seconds=30).trials
            provenance = running[name].provenance
            if provenance["generator"].startswith("gp:"):
                version = client.study(study).data_version
                # as many results behind as trials were running when it was given out
                assert version - provenance["data_version"] <= 3
    trials = list(client.trials(study))
    assert len({str(t.parameters) for t in trials}) == len(trials)
    assert any(t.provenance["generator"] == "gp:qlognei" for t in trials)


def test_a_claim_with_fixed_values_is_answered_by_the_model(client: Client, make_spec) -> None:
    study = client.create_study(gp(make_spec)).id
    for _ in range(5):
        (trial,) = client.claim(study, "w", wait_seconds=30).trials
        client.complete(trial, {"loss": loss(trial)})
    (trial,) = client.claim(study, "w", wait_seconds=30, fixed={"x1": 0.75}).trials
    assert trial.parameters["x1"] == 0.75
    assert trial.provenance["generator"].startswith("gp:")


def test_a_finite_space_ends_when_everything_was_tried(client: Client, make_spec) -> None:
    parameters = [{"type": "bool", "name": "a"}, {"type": "categorical", "name": "b", "choices": ["u", "v"]}]
    study = client.create_study(make_spec(parameters=parameters, surrogate={"name": "gp"})).id
    seen = []
    while True:
        claims = client.claim(study, "w", wait_seconds=5)
        if not claims.trials:
            if claims.retry_after_seconds is None:
                break
            continue
        (trial,) = claims.trials
        seen.append(str(trial.parameters))
        client.complete(trial, {"loss": len(seen)})
    assert len(seen) == len(set(seen)) == 4
    assert (client.study(study).state_reason or "").startswith("exhausted")


def test_every_fit_is_recorded_with_its_figures(client: Client, make_spec) -> None:
    study = client.create_study(gp(make_spec)).id
    for _ in range(7):
        (trial,) = client.claim(study, "w", wait_seconds=30).trials
        client.complete(trial, {"loss": loss(trial)})
    fit = next(f for f in client.fits(study) if f["diagnostics"].get("outcomes"))
    assert fit["surrogate"] == "gp"
    assert fit["seconds"] > 0
    assert set(fit["diagnostics"]["outcomes"]["loss"]["lengthscales"]) == {"x0", "x1", "x2"}


def test_imported_trials_count_toward_the_initial_design(client: Client, make_spec) -> None:
    study = client.create_study(gp(make_spec)).id
    rows = [
        {
            "parameters": {f"x{k}": ((7 * i + 3 * k) % 10) / 10 for k in range(3)},
            "metrics": {"loss": float(i)},
        }
        for i in range(10)
    ]
    client.import_trials(study, rows)
    (trial,) = client.claim(study, "w", wait_seconds=30).trials
    assert trial.provenance["generator"].startswith("gp:"), trial.provenance
