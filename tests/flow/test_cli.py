"""`bo` as its users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bo_service.client import Client


@pytest.fixture
def bo(service, tmp_path: Path):
    """Runs `bo` against the service; returns status, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        environment = os.environ | {
            "BO_URL": service.url,
            "BO_API_KEY": service.key,
            "BO_HOME": str(service.home),
            "COLUMNS": "200",
            "OMP_NUM_THREADS": "2",  # a replay computes with the service's threads, not the shell's
        }
        done = subprocess.run(
            [sys.executable, "-m", "bo_service", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def spec_file(tmp_path: Path, make_spec) -> tuple[Path, dict[str, Any]]:
    spec = make_spec()
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec))
    return path, spec


def test_a_study_from_a_file_to_its_best_trial(bo, spec_file) -> None:
    path, spec = spec_file
    name = spec["name"]
    status, out, err = bo("study", "create", str(path), "--json")
    assert status == 0, err
    assert json.loads(out)["name"] == name
    status, out, _ = bo("trial", "claim", name, "--json")
    (trial,) = json.loads(out)["trials"]
    status, out, err = bo(
        "trial", "complete", trial["id"], '{"loss": 0.5}', "--lease", trial["lease"], "--json"
    )
    assert status == 0, err
    assert json.loads(bo("study", "best", name, "--json")[1])[0]["metrics"]["loss"]["value"] == 0.5
    status, out, _ = bo("study", "show", name)
    assert status == 0
    assert "0.5" in out
    assert name in bo("study", "list")[1]
    assert "COMPLETED" in bo("trial", "list", name)[1]
    assert "study_created" in bo("study", "events", name)[1]


def test_pause_resume_edit_branch_export_import(bo, spec_file, tmp_path: Path) -> None:
    path, spec = spec_file
    name = spec["name"]
    bo("study", "create", str(path))
    assert "PAUSED" in bo("study", "pause", name)[1]
    assert "ACTIVE" in bo("study", "resume", name)[1]
    assert bo("study", "edit", name, '{"parallelism": 3}')[0] == 0
    assert bo("trial", "attach", name, '{"x": 0.25, "k": 2}', '{"loss": 1.5}')[0] == 0
    csv = tmp_path / "trials.csv"
    assert bo("study", "export", name, "--format", "csv", "-o", str(csv))[0] == 0
    report = json.loads(bo("study", "branch", name, f"{name}-b", "--json")[1])
    assert report["copied"] == 1
    status, out, err = bo("study", "import", f"{name}-b", str(csv), "--json")
    assert status == 0, err
    assert json.loads(out)["imported"] == 1


def test_a_refusal_goes_to_stderr_with_the_field_and_status_1(bo, tmp_path: Path, make_spec) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(make_spec(parameters=[{"type": "int", "name": "k", "low": 3, "high": 1}])))
    status, out, err = bo("study", "create", str(path))
    assert status == 1
    assert out == ""
    assert "parameters.0.high: 1 is not above low = 3" in err
    status, _, err = bo("study", "show", "no-such-study")
    assert status == 1
    assert "not_found" in err


def test_keys_surrogates_database_and_doctor(bo, service) -> None:
    made = json.loads(bo("key", "create", "ci", "--scope", "viewer", "--json")[1])
    assert made["key"].startswith("bo_")
    assert "ci" in bo("key", "list")[1]
    rotated = json.loads(bo("key", "rotate", made["id"], "--json")[1])
    assert rotated["key"] not in (None, made["key"])
    with Client(service.url, made["key"]) as old:
        assert old.info()["key"] == "ci", "it works for another hour"
    assert bo("key", "revoke", made["id"])[0] == 0
    assert {s["name"] for s in json.loads(bo("surrogate", "list", "--json")[1])} >= {"gp", "hmc", "sobol"}
    shown = bo("surrogate", "show", "hmc")[1]
    assert "n_chains" in shown
    assert "Independent chains" in shown
    assert json.loads(bo("surrogate", "show", "gp", "--json")[1])["options_schema"]["properties"]
    status, _, err = bo("surrogate", "show", "gq")
    assert status == 1
    assert "installed: auto" in err
    current = json.loads(bo("db", "current", "--json")[1])
    assert current["current"] == current["head"]
    status, out, err = bo("doctor", "--json")
    assert status == 0, out + err
    assert all(finding["is_fine"] for finding in json.loads(out))


def test_a_wrong_setting_is_named_and_its_value_is_not_told() -> None:
    wrong = {"BO_DATABASE_URL": "postgresql://u:hush@hush@h/d", "BO_RATE_LIMIT": "-1"}
    done = subprocess.run(
        [sys.executable, "-m", "bo_service", "db", "current"],
        env=os.environ | wrong,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "BO_DATABASE_URL: has more than one @" in done.stderr
    assert "BO_RATE_LIMIT: Input should be greater than or equal to 0" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hush" not in done.stderr


@pytest.mark.slow
def test_doctor_says_what_is_wrong(tmp_path: Path) -> None:
    environment = os.environ | {"BO_HOME": str(tmp_path / "nowhere"), "BO_URL": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-m", "bo_service", "doctor", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    wrong = {f["what"]: f["remedy"] for f in json.loads(done.stdout) if not f["is_fine"]}
    assert "bo up" in wrong["service"]
    assert "bo db upgrade" in wrong["database"]


@pytest.mark.slow
def test_a_suggestion_of_the_model_is_replayed_identically(bo, spec_file) -> None:
    path, spec = spec_file
    spec |= {"name": spec["name"] + "-gp", "surrogate": {"name": "gp"}, "initial": {"size": 3}}
    path.write_text(json.dumps(spec))
    bo("study", "create", str(path))
    for i in range(5):
        claimed = bo("trial", "claim", spec["name"], "--json", "--wait", "30")
        (trial,) = json.loads(claimed[1])["trials"]
        bo("trial", "complete", trial["id"], json.dumps({"loss": (i - 2.0) ** 2}), "--lease", trial["lease"])
    assert trial["provenance"]["generator"] == "gp:logei"
    assert trial["provenance"]["acquisition_value"] is not None
    fitted = json.loads(bo("study", "fits", spec["name"], "--json", "--limit", "1")[1])
    assert fitted[0]["diagnostics"]["acquisition"] == "logei"
    told = bo("study", "fits", spec["name"])[1]
    assert "gp" in told
    assert "lengthscales" in told
    status, out, err = bo("replay", trial["suggestion_id"], "--json")
    assert status == 0, out + err
    assert json.loads(out)["identical"] is True
    assert json.loads(out)["recomputed"]["parameters"] == trial["parameters"]
    for worker in ("one", "two"):
        claimed = bo("trial", "claim", spec["name"], "--json", "--wait", "30", "--worker", worker)
    (beside_pending,) = json.loads(claimed[1])["trials"]
    assert beside_pending["provenance"]["generator"].startswith("gp:q")
    status, out, err = bo("replay", beside_pending["suggestion_id"])
    assert status == 0, out + err
    status, _, err = bo("replay", "no-such-id")
    assert status == 1
    assert "no suggestion" in err


def test_a_fleet_is_told_at_once_what_is_wrong(bo) -> None:
    code, _, err = bo("evaluate", "--objective", "nowhere.to_be:found")
    assert (code, "nowhere" in err) == (2, True)
    code, _, err = bo("evaluate", "--objective", "json:dumps", "--queues", "objectives,cpu")
    assert code == 2
    assert "'cpu' is not a queue of objectives" in err
    code, _, err = bo("evaluate")
    assert (code, "--objective" in err) == (2, True)
