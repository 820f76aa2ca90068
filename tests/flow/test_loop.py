"""The whole loop through HTTP, on a running service."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.waiting import until


def claim(http: httpx2.Client, study: str, worker: str = "w1", **more: Any) -> list[dict[str, Any]]:
    reply = http.post(f"/v1/studies/{study}/trials", json={"worker": worker, "wait_seconds": 20, **more})
    assert reply.status_code == 200, reply.text
    return reply.json()["trials"]


def complete(http: httpx2.Client, trial: dict[str, Any], **metrics: Any) -> httpx2.Response:
    return http.post(f"/v1/trials/{trial['id']}/complete", json={"lease": trial["lease"], "metrics": metrics})


@pytest.fixture
def study(http: httpx2.Client, make_spec) -> str:
    reply = http.post("/v1/studies", json=make_spec())
    assert reply.status_code == 201, reply.text
    return reply.json()["id"]


def test_a_study_runs_from_the_request_to_the_best_point(http: httpx2.Client, make_spec) -> None:
    spec = make_spec(stopping={"max_trials": 5})
    study = http.post("/v1/studies", json=spec).json()["id"]
    values = []
    for _ in range(5):
        (trial,) = claim(http, study)
        values.append((trial["parameters"]["x"] - 0.3) ** 2)
        assert complete(http, trial, loss=values[-1]).json()["state"] == "COMPLETED"
    found = http.get(f"/v1/studies/{spec['name']}").json()
    assert found["state"] == "STOPPED"
    assert found["state_reason"].startswith("max_trials")
    assert found["counts"]["COMPLETED"] == 5
    assert found["best"]["metrics"]["loss"]["value"] == pytest.approx(min(values))
    assert http.get(f"/v1/studies/{study}/best").json()["trial"]["number"] == values.index(min(values)) + 1
    over = http.post(f"/v1/studies/{study}/trials", json={"worker": "w1"})
    assert (over.status_code, over.json()["reason"]) == (200, "study_stopped")


def test_a_worker_gets_its_own_open_trial_back_under_a_new_lease(http: httpx2.Client, study: str) -> None:
    (first,) = claim(http, study)
    (again,) = claim(http, study)
    assert again["id"] == first["id"]
    assert again["lease"] != first["lease"]
    assert again["attempts"] == 1
    assert complete(http, first, loss=1).json()["code"] == "lease_lost"
    assert complete(http, again, loss=1).status_code == 200


def test_another_worker_gets_another_trial_and_count_gives_several(http: httpx2.Client, study: str) -> None:
    (first,) = claim(http, study, "w1")
    three = claim(http, study, "w2", count=3)
    assert len({first["id"], *(t["id"] for t in three)}) == 4
    assert [t["number"] for t in three] == [2, 3, 4]


def test_without_reclaim_the_same_worker_gets_a_new_trial(http: httpx2.Client, study: str) -> None:
    (first,) = claim(http, study)
    (second,) = claim(http, study, reclaim=False)
    assert first["id"] != second["id"]


def test_the_users_configuration_comes_before_the_generated_ones(http: httpx2.Client, study: str) -> None:
    mine = http.post(f"/v1/studies/{study}/suggestions", json={"parameters": {"x": 0.125, "k": 5}})
    assert mine.status_code == 201
    (trial,) = claim(http, study)
    assert trial["parameters"] == {"x": 0.125, "k": 5}
    assert trial["source"] == "enqueued"
    assert http.delete(f"/v1/suggestions/{mine.json()['id']}").json()["code"] == "conflict"


def test_a_cancelled_configuration_is_not_given_out(http: httpx2.Client, study: str) -> None:
    mine = http.post(f"/v1/studies/{study}/suggestions", json={"parameters": {"x": 0.125, "k": 5}}).json()
    assert http.delete(f"/v1/suggestions/{mine['id']}").json()["state"] == "CANCELLED"
    (trial,) = claim(http, study)
    assert trial["parameters"] != {"x": 0.125, "k": 5}


def test_fixed_values_are_kept_in_every_suggestion(http: httpx2.Client, study: str) -> None:
    trials = claim(http, study, count=3, fixed={"k": 4})
    while len(trials) < 3:
        trials += claim(http, study, count=3 - len(trials), fixed={"k": 4}, reclaim=False)
    assert {t["parameters"]["k"] for t in trials} == {4}
    assert len({t["parameters"]["x"] for t in trials}) == 3


def test_initial_points_of_the_user_are_evaluated_first(http: httpx2.Client, make_spec) -> None:
    points = [{"x": 0.1, "k": 2}, {"x": 0.9, "k": 3}]
    study = http.post("/v1/studies", json=make_spec(initial={"points": points})).json()["id"]
    assert [t["parameters"] for t in claim(http, study, count=2)] == points


def test_heartbeat_moves_the_lease_and_says_when_to_stop(http: httpx2.Client, study: str) -> None:
    (trial,) = claim(http, study, lease_seconds=30)
    beat = http.put(f"/v1/trials/{trial['id']}/heartbeat", json={"lease": trial["lease"]}).json()
    assert beat["lease_expires_at"] > trial["lease_expires_at"]
    assert beat["should_stop"] is False
    assert http.post(f"/v1/trials/{trial['id']}/cancel").json()["stop_requested"] is True
    beat = http.put(f"/v1/trials/{trial['id']}/heartbeat", json={"lease": trial["lease"]}).json()
    assert beat["should_stop"] is True
    stopped = http.post(
        f"/v1/trials/{trial['id']}/complete",
        json={"lease": trial["lease"], "metrics": {"loss": 2}, "stopped_early": True},
    )
    assert stopped.json()["state"] == "STOPPED"


def test_a_learning_curve_is_kept_and_a_second_value_for_a_step_refused(
    http: httpx2.Client, study: str
) -> None:
    (trial,) = claim(http, study)
    url = f"/v1/trials/{trial['id']}/observations"
    for step in (1, 2, 2):
        reply = http.post(url, json={"lease": trial["lease"], "step": step, "metrics": {"loss": 1 / step}})
        assert reply.status_code == 200
    other = http.post(url, json={"lease": trial["lease"], "step": 2, "metrics": {"loss": 9}})
    assert other.json()["code"] == "conflict"
    assert "already recorded" in other.json()["detail"]
    read = http.get(f"/v1/trials/{trial['id']}").json()
    assert [(o["step"], o["value"]) for o in read["observations"]] == [(1, 1.0), (2, 0.5)]


def test_an_expired_lease_sends_the_trial_back_and_its_late_result_becomes_a_note(
    http: httpx2.Client, study: str
) -> None:
    (trial,) = claim(http, study, "slow", lease_seconds=1)
    until(lambda: http.get(f"/v1/trials/{trial['id']}").json()["state"] != "RUNNING")
    late = complete(http, trial, loss=5)
    assert (late.status_code, late.json()["code"], late.json()["kept_as_note"]) == (409, "lease_lost", True)
    (again,) = claim(http, study, "quick")
    assert (again["id"], again["attempts"]) == (trial["id"], 2)
    assert complete(http, again, loss=4).status_code == 200
    read = http.get(f"/v1/trials/{trial['id']}").json()
    assert [a["exit"] for a in read["attempts_log"]] == ["lease_expired", "completed"]
    assert read["metrics"]["loss"]["value"] == 4
    assert [n["metrics"] for n in read["notes"]] == [{"loss": 5}]


def test_attempts_run_out_and_the_trial_fails(http: httpx2.Client, make_spec) -> None:
    spec = make_spec(retry={"max_attempts": 2, "retry_failures": True})
    study = http.post("/v1/studies", json=spec).json()["id"]
    states = []
    for _ in range(2):
        (trial,) = claim(http, study)
        failed = http.post(
            f"/v1/trials/{trial['id']}/fail", json={"lease": trial["lease"], "reason": "no disk"}
        )
        states.append(failed.json()["state"])
    assert states == ["QUEUED", "FAILED"]
    assert http.get(f"/v1/trials/{trial['id']}").json()["reason"] == "no disk"


def test_a_released_trial_goes_to_the_next_worker_without_counting(http: httpx2.Client, make_spec) -> None:
    study = http.post("/v1/studies", json=make_spec(retry={"max_attempts": 1})).json()["id"]
    (trial,) = claim(http, study, "w1")
    released = http.post(f"/v1/trials/{trial['id']}/release", json={"lease": trial["lease"]})
    assert released.json()["state"] == "QUEUED"
    (again,) = claim(http, study, "w2")
    assert again["id"] == trial["id"]
    assert complete(http, again, loss=1).status_code == 200


@pytest.mark.parametrize(("policy", "state"), [("failed", "FAILED"), ("infeasible", "INFEASIBLE")])
def test_a_value_that_is_not_finite_closes_by_policy(http: httpx2.Client, make_spec, policy, state) -> None:
    study = http.post("/v1/studies", json=make_spec(retry={"non_finite": policy})).json()["id"]
    (trial,) = claim(http, study)
    closed = complete(http, trial, loss="nan").json()
    assert closed["state"] == state
    assert closed["reason"] == "non_finite: loss"
    assert closed["metrics"] == {}


def test_infeasible_and_abandoned_trials_end_with_their_reason(http: httpx2.Client, study: str) -> None:
    one, two = claim(http, study, count=2)
    closed = http.post(
        f"/v1/trials/{one['id']}/infeasible", json={"lease": one["lease"], "reason": "too large"}
    )
    assert (closed.json()["state"], closed.json()["reason"]) == ("INFEASIBLE", "too large")
    gone = http.post(f"/v1/trials/{two['id']}/abandon", json={"reason": "mistake"}).json()
    assert gone["state"] == "ABANDONED"
    assert complete(http, two, loss=1).json()["code"] == "trial_closed"


def test_the_same_idempotency_key_repeats_the_answer_and_refuses_another_request(
    http: httpx2.Client, study: str
) -> None:
    body, headers = {"worker": "w", "wait_seconds": 20}, {"Idempotency-Key": f"claim-{study}"}
    first = http.post(f"/v1/studies/{study}/trials", json=body, headers=headers)
    again = http.post(f"/v1/studies/{study}/trials", json=body, headers=headers)
    assert again.json() == first.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert http.get(f"/v1/studies/{study}").json()["n_trials"] == 1
    other = http.post(f"/v1/studies/{study}/trials", json=body | {"count": 2}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_mismatch")


def test_parallelism_limits_the_running_trials(http: httpx2.Client, make_spec) -> None:
    study = http.post("/v1/studies", json=make_spec(parallelism=2)).json()["id"]
    two = claim(http, study, count=5)
    assert len(two) == 2
    none = http.post(f"/v1/studies/{study}/trials", json={"worker": "w2"})
    assert (none.status_code, none.json()["reason"]) == (202, "parallelism")
    assert none.headers["Retry-After"] == "1"
    complete(http, two[0], loss=1)
    assert len(claim(http, study, "w2")) == 1


def test_a_budget_in_flight_gives_no_more_trials_than_the_budget(http: httpx2.Client, make_spec) -> None:
    study = http.post("/v1/studies", json=make_spec(stopping={"max_trials": 2})).json()["id"]
    assert len(claim(http, study, count=5)) == 2
    none = http.post(f"/v1/studies/{study}/trials", json={"worker": "w2"})
    assert (none.status_code, none.json()["reason"]) == (202, "budget_in_flight")


def test_pause_resume_stop_archive(http: httpx2.Client, study: str) -> None:
    assert http.post(f"/v1/studies/{study}/pause", json={"reason": "lunch"}).json()["state"] == "PAUSED"
    none = http.post(f"/v1/studies/{study}/trials", json={"worker": "w"})
    assert (none.status_code, none.json()["reason"]) == (202, "paused")
    assert http.post(f"/v1/studies/{study}/resume").json()["state"] == "ACTIVE"
    (trial,) = claim(http, study)
    assert http.post(f"/v1/studies/{study}/stop").json()["state"] == "STOPPED"
    beat = http.put(f"/v1/trials/{trial['id']}/heartbeat", json={"lease": trial["lease"]}).json()
    assert beat["should_stop"] is True
    assert complete(http, trial, loss=1).status_code == 200
    assert http.post(f"/v1/studies/{study}/archive").json()["state"] == "ARCHIVED"
    assert http.post(f"/v1/studies/{study}/resume").json()["code"] == "study_closed"


def test_resuming_a_spent_study_asks_for_a_larger_budget_first(http: httpx2.Client, make_spec) -> None:
    study = http.post("/v1/studies", json=make_spec(stopping={"max_trials": 1})).json()["id"]
    (trial,) = claim(http, study)
    complete(http, trial, loss=1)
    refused = http.post(f"/v1/studies/{study}/resume").json()
    assert refused["code"] == "conflict"
    assert "raise the budget" in refused["hint"]
    assert http.patch(f"/v1/studies/{study}", json={"stopping": {"max_trials": 3}}).status_code == 200
    assert http.post(f"/v1/studies/{study}/resume").json()["state"] == "ACTIVE"
    assert len(claim(http, study)) == 1


def test_pareto_front_of_two_objectives_with_a_constraint(http: httpx2.Client, make_spec) -> None:
    metrics = [
        {"name": "accuracy", "goal": "maximize"},
        {"name": "latency", "goal": "minimize"},
        {"name": "memory", "goal": "constraint", "upper": 10},
    ]
    study = http.post("/v1/studies", json=make_spec(metrics=metrics)).json()["id"]
    rows = [(0.9, 5, 1), (0.8, 3, 1), (0.7, 4, 1), (0.99, 1, 11), (0.95, 5, 1)]
    for i, (accuracy, latency, memory) in enumerate(rows):
        body = {
            "parameters": {"x": i / 10, "k": 1},
            "metrics": {"accuracy": accuracy, "latency": latency, "memory": {"value": memory, "sem": 0.1}},
        }
        assert http.post(f"/v1/studies/{study}/trials/attach", json=body).status_code == 201
    front = http.get(f"/v1/studies/{study}/pareto").json()["items"]
    assert [t["number"] for t in front] == [2, 5]
    assert "several_objectives" in http.get(f"/v1/studies/{study}/best").json()["reason"]


def test_events_are_resumed_by_the_last_id(http: httpx2.Client, study: str) -> None:
    (trial,) = claim(http, study)
    complete(http, trial, loss=1)
    lines = http.get(f"/v1/studies/{study}/events", params={"follow": False}).text.splitlines()
    kinds = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert kinds[0] == "study_created"
    assert "trial_closed" in kinds
    ids = [int(line.removeprefix("id: ")) for line in lines if line.startswith("id: ")]
    assert ids == sorted(set(ids))
    rest = http.get(
        f"/v1/studies/{study}/events", params={"follow": False}, headers={"Last-Event-ID": str(ids[2])}
    ).text
    assert [int(li.removeprefix("id: ")) for li in rest.splitlines() if li.startswith("id: ")][
        : len(ids) - 3
    ] == ids[3:]


def test_the_event_stream_tells_what_happens_while_it_is_open(http: httpx2.Client, study: str) -> None:
    seen: list[str] = []
    with http.stream("GET", f"/v1/studies/{study}/events") as stream:
        for line in stream.iter_lines():
            if line.startswith("event: "):
                seen.append(line.removeprefix("event: "))
            if seen == ["study_created"]:
                http.post(f"/v1/studies/{study}/pause")
            if "study_changed" in seen:
                break
    assert seen[0] == "study_created"


def test_export_can_be_imported_into_another_study(http: httpx2.Client, study: str, make_spec) -> None:
    for trial in claim(http, study, count=3):
        complete(http, trial, loss={"value": trial["parameters"]["x"], "sem": 0.01})
    for form, media in (("csv", "text/csv"), ("jsonl", "application/x-ndjson")):
        text = http.get(f"/v1/studies/{study}/export", params={"format": form}).text
        other = http.post("/v1/studies", json=make_spec()).json()["id"]
        url = f"/v1/studies/{other}/trials/import"
        dry = http.post(url, content=text, headers={"Content-Type": media}, params={"dry_run": True}).json()
        assert (dry["imported"], dry["dry_run"]) == (3, True)
        assert http.get(f"/v1/studies/{other}").json()["n_trials"] == 0
        report = http.post(url, content=text, headers={"Content-Type": media}).json()
        assert (report["imported"], report["refused"]) == (3, 0)
        mine = http.get(f"/v1/studies/{study}/trials").json()["items"]
        theirs = http.get(f"/v1/studies/{other}/trials").json()["items"]
        assert [t["parameters"] for t in theirs] == [t["parameters"] for t in mine]
        assert [t["metrics"] for t in theirs] == [t["metrics"] for t in mine]


def test_an_import_with_a_bad_row_changes_nothing_and_names_the_row(http: httpx2.Client, study: str) -> None:
    text = "x,k,loss\n0.1,1,0.5\n3.0,1,0.5\n0.2,2,oops\n"
    url, headers = f"/v1/studies/{study}/trials/import", {"Content-Type": "text/csv"}
    refused = http.post(url, content=text, headers=headers)
    assert refused.status_code == 422
    fields = [p["field"] for p in refused.json()["problems"]]
    assert fields[0] == "rows.2.parameters.x"
    assert fields[1].startswith("rows.3.metrics.loss")
    assert http.get(f"/v1/studies/{study}").json()["n_trials"] == 0
    report = http.post(url, content=text, headers=headers, params={"skip_bad_rows": True}).json()
    assert (report["imported"], report["refused"]) == (1, 2)


def test_trials_are_paged_by_number_and_by_change(http: httpx2.Client, study: str) -> None:
    claimed = claim(http, study, count=7)
    numbers, cursor = [], None
    while True:
        page = http.get(
            f"/v1/studies/{study}/trials", params={"limit": 3, **({"cursor": cursor} if cursor else {})}
        )
        numbers += [t["number"] for t in page.json()["items"]]
        cursor = page.json()["next_cursor"]
        if cursor is None:
            break
    assert numbers == [1, 2, 3, 4, 5, 6, 7]
    closed = complete(http, claimed[4], loss=1).json()
    since = http.get(f"/v1/studies/{study}/trials", params={"updated_since": closed["updated_at"]}).json()[
        "items"
    ]
    assert [t["number"] for t in since] == [5]
    running = http.get(
        f"/v1/studies/{study}/trials", params={"state": ["RUNNING"], "order": "-number"}
    ).json()
    assert [t["number"] for t in running["items"]] == [7, 6, 4, 3, 2, 1]


def test_a_branch_copies_what_is_still_valid(http: httpx2.Client, study: str, make_spec) -> None:
    for x in (0.1, 0.6, 0.9):
        http.post(
            f"/v1/studies/{study}/trials/attach",
            json={"parameters": {"x": x, "k": 2}, "metrics": {"loss": x}},
        )
    parameters = [
        {"type": "float", "name": "x", "low": 0.0, "high": 0.7},
        {"type": "int", "name": "k", "low": 1, "high": 8},
    ]
    name = make_spec()["name"] + "-branch"
    reply = http.post(
        f"/v1/studies/{study}/branch", json={"name": name, "changes": {"parameters": parameters}}
    )
    assert reply.status_code == 201, reply.text
    assert (reply.json()["copied"], reply.json()["left_out"]) == (2, 1)
    assert reply.json()["left_out_reasons"][0]["number"] == 3
    assert reply.json()["study"]["parent_study_id"] == study
    assert http.get(f"/v1/studies/{name}/best").json()["trial"]["metrics"]["loss"]["value"] == 0.1


def test_edits_that_keep_the_meaning_are_done_and_others_point_to_a_branch(
    http: httpx2.Client, study: str
) -> None:
    wider = http.patch(f"/v1/studies/{study}", json={"widen": {"x": {"high": 2.0}}, "parallelism": 4})
    assert wider.status_code == 200, wider.text
    assert wider.json()["spec"]["parameters"][0]["high"] == 2.0
    assert wider.json()["spec_version"] == 2
    narrower = http.patch(f"/v1/studies/{study}", json={"widen": {"x": {"high": 1.5}}})
    assert (narrower.status_code, narrower.json()["code"]) == (409, "meaning_changed")
    metrics = http.patch(f"/v1/studies/{study}", json={"metrics": [{"name": "other", "goal": "maximize"}]})
    assert metrics.json()["code"] == "meaning_changed"
    assert "branch" in metrics.json()["hint"]
