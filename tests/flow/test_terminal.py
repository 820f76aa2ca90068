"""What `bo` shows in a terminal of 80 columns, and what it says of mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bo_service.client import Client, Refused, StudyDiffers


@pytest.fixture
def bo(service, tmp_path: Path):
    """Runs `bo` in a narrow terminal; returns status, output and errors."""

    def run(*arguments: str, columns: int = 80, **changed: str) -> tuple[int, str, str]:
        environment = {"BO_URL": service.url, "BO_API_KEY": service.key, "COLUMNS": str(columns)} | changed
        done = subprocess.run(
            [sys.executable, "-m", "bo_service", *arguments],
            env=os.environ | {"BO_HOME": str(service.home)} | environment,
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def client(service):
    with Client(service.url, service.key) as found:
        yield found


def evaluate(client: Client, study: str, value: float = 1 / 3) -> Any:
    (trial,) = client.claim(study, "somebody:12345/0", wait_seconds=30).trials
    return client.complete(trial, {"loss": value})


def test_a_narrow_terminal_shows_whole_words(bo, client, make_spec) -> None:
    study = client.create_study(make_spec(name="narrow", stopping={"max_trials": 60}))
    trial = evaluate(client, study.id)
    for arguments in (("study", "list"), ("study", "show", study.name)):
        out = bo(*arguments)[1]
        (line,) = (line for line in out.splitlines() if line.strip().startswith(study.name))
        assert line.split()[1:] == ["ACTIVE", "1", "of", "60", "1", "0", "0", "0.333333"]
        assert study.id not in out
        assert study.id in bo(*arguments, columns=160)[1]
        assert max(map(len, out.splitlines())) <= 80
    assert study.id in bo("study", "list", "--ids")[1]
    assert trial.id in bo("trial", "list", study.name, "--ids")[1]
    assert trial.id not in bo("trial", "list", study.name)[1]


def test_the_deliveries_of_a_webhook_fit(bo, start_service) -> None:
    own = start_service(BO_WEBHOOK_ALLOW='["127.0.0.1"]')
    with Client(own.url, own.key) as client:
        made = client.webhooks.create("http://127.0.0.1:1025/a/long/path/to/somewhere")
        sent = client.webhooks.test(made["id"])
    bo = partial(bo, BO_URL=own.url, BO_API_KEY=own.key)
    out = bo("webhook", "deliveries", made["id"])[1]
    assert any("ping" in line and ("PENDING" in line or "FAILED" in line) for line in out.splitlines())
    assert sent["id"] in bo("webhook", "deliveries", made["id"], "--ids")[1]
    assert made["id"] in bo("webhook", "list")[1]


def test_a_trial_is_shown_by_study_and_number(bo, client, make_spec) -> None:
    study = client.create_study(make_spec())
    first, second = evaluate(client, study.id), evaluate(client, study.id)
    assert json.loads(bo("trial", "show", study.name, "2", "--json")[1])["id"] == second.id
    assert json.loads(bo("trial", "show", first.id, "--json")[1])["number"] == 1
    status, _, err = bo("trial", "show", study.name, "3")
    assert (status, f"study '{study.name}' has no trial 3" in err) == (1, True)
    status, _, err = bo("trial", "show", "1")
    assert (status, err) == (1, "which study? bo trial show STUDY 1\n")


@pytest.mark.parametrize("arguments", [("key", "revoke"), ("webhook", "test"), ("trial", "show")])
def test_what_is_no_id_is_told_so_in_words(bo, arguments: tuple[str, str]) -> None:
    status, _, err = bo(*arguments, "nope")
    assert status == 1
    assert "'nope' is not an id" in err
    assert "pattern" not in err


def test_a_study_without_results_has_no_best_trial_yet(bo, client, make_spec) -> None:
    study = client.create_study(make_spec())
    assert bo("study", "best", study.name)[1] == "no trial is completed yet\n"


def test_a_file_that_is_not_there_is_named_once(bo) -> None:
    assert bo("study", "create", "nope.json")[2] == "nope.json: No such file or directory\n"
    assert bo("import", "nope.archive")[2] == "nope.archive: No such file or directory\n"


def test_a_second_run_of_a_script_goes_on_with_its_study(client, make_spec) -> None:
    spec = make_spec()
    ranges_apart = spec | {"parameters": [spec["parameters"][0] | {"high": 2.0}, spec["parameters"][1]]}
    client.create_study(spec)
    with pytest.raises(Refused, match="load_if_exists"):
        client.create_study(spec)
    assert client.create_study(ranges_apart, load_if_exists=True).name == spec["name"]
    for n in (2, 4):
        result = client.optimize(
            spec, lambda trial: trial["x"], trials=2, progress=False, load_if_exists=True
        )
        assert result.study.n_closed == n
    with pytest.raises(StudyDiffers, match="has the metrics loss, not error"):
        client.create_study(spec | {"metrics": [{"name": "error", "goal": "minimize"}]}, load_if_exists=True)


def test_words_of_other_libraries_are_translated(client, make_spec) -> None:
    spec = make_spec(
        budget=20,
        metrics=[{"name": "loss", "direction": "minimize"}],
        parameters=[{"type": "float", "name": "x", "low": 0.0, "high": 1.0, "log": True}],
    )
    with pytest.raises(Refused) as refused:
        client.create_study(spec)
    hints = {problem.field: problem.hint for problem in refused.value.problems}
    assert hints["budget"] == "did you mean stopping.max_trials?"
    assert hints["metrics.0.direction"] == "did you mean goal?"
    assert hints["parameters.0.log"] == 'did you mean scale: "log"?'


def test_a_number_that_json_cannot_say_is_named_before_it_is_sent(client, make_spec) -> None:
    spec = make_spec(parameters=[{"type": "float", "name": "x", "low": float("nan"), "high": float("inf")}])
    with pytest.raises(Refused) as refused:
        client.create_study(spec)
    assert [problem.field for problem in refused.value.problems] == ["parameters.0.low", "parameters.0.high"]
