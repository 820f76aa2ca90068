"""Objective workers as real processes against a real service."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from bo_service.client import Client, LeaseLost, Refused, TrialHandle, Unreachable
from bo_service.client.optimize import ObjectiveBroken
from tests.waiting import until

FOLDER = Path(__file__).parent / "objectives"


@pytest.fixture
def client(service):
    with Client(service.url, service.key) as found:
        yield found


@pytest.fixture
def study(client: Client, make_spec) -> str:
    return client.create_study(make_spec(stopping={"max_trials": 3})).id


def worker(service, study: str, *options: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "workers.objective", "--study", study, *options]
    variables = (
        os.environ
        | {"BO_URL": service.url, "BO_API_KEY": service.key, "PYTHONPATH": str(FOLDER)}
        | environment
    )
    return subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], seconds: float = 60) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def test_two_slots_work_until_the_study_is_over(service, client: Client, study: str) -> None:
    process = worker(service, study, "--objective", "worker_objectives:quadratic", "--slots", "2")
    code, _, err = finish(process)
    assert code == 0, err
    found = client.study(study)
    assert (found.state, found.counts["COMPLETED"], found.cost) == ("STOPPED", 3, 7.5)
    trial = next(client.trials(study))
    assert [o["step"] for o in client.trial(trial.id).raw["observations"]] == [None, 1]


def test_an_exception_fails_the_trial_with_its_traceback(service, client: Client, study: str) -> None:
    process = worker(service, study, "--objective", "worker_objectives:raises", "--max-trials", "1")
    assert finish(process)[0] == 0
    (trial,) = client.trials(study)
    assert trial.state == "FAILED"
    assert "RuntimeError: broken on purpose in trial 1" in (trial.reason or "")
    assert len(trial.reason or "") < 20_000


def test_an_infeasible_configuration_is_closed_as_such(service, client: Client, study: str) -> None:
    process = worker(service, study, "--objective", "worker_objectives:infeasible", "--max-trials", "1")
    assert finish(process)[0] == 0
    (trial,) = client.trials(study)
    assert (trial.state, trial.reason) == ("INFEASIBLE", "does not fit into memory")


def test_a_hanging_objective_is_ended_by_its_timeout(service, client: Client, study: str) -> None:
    process = worker(service, study, "--objective", "worker_objectives:hangs", "--timeout", "2")
    trial = until(lambda: next(client.trials(study, state="FAILED"), None))
    process.terminate()
    finish(process)
    assert "timeout" in (trial.reason or "")
    assert trial.raw["attempts"] == 1


def test_sigterm_releases_the_trial(service, client: Client, study: str) -> None:
    process = worker(service, study, "--objective", "worker_objectives:hangs")
    until(lambda: client.study(study).counts["RUNNING"] == 1)
    started = time.monotonic()
    process.terminate()
    assert finish(process)[0] == 0
    assert time.monotonic() - started < 15
    (trial,) = client.trials(study)
    assert (trial.state, trial.raw["attempts"]) == ("QUEUED", 1)


def test_a_trial_whose_answer_was_on_its_way_is_given_back(service, client: Client, study: str) -> None:
    """A proxy keeps the first claim's answer to itself until the worker, told to stop, has hung up."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    is_given, may_go_on = threading.Event(), threading.Event()

    class Holding(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            sent = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "content-length")}
            answer = httpx2.request(
                self.command, service.url + self.path, content=body, headers=sent, timeout=60
            )
            if self.path.endswith("/trials") and self.command == "POST" and not is_given.is_set():
                is_given.set()
                may_go_on.wait(30)
                self.close_connection = True
                return
            self.send_response(answer.status_code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST

        def log_message(self, *_: object) -> None: ...

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Holding)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        options = ("--objective", "worker_objectives:hangs", "--url", f"http://127.0.0.1:{proxy.server_port}")
        process = worker(service, study, *options, BO_URL="")
        assert is_given.wait(60)
        assert client.study(study).counts["RUNNING"] == 1
        process.terminate()
        code, _, err = finish(process)
        assert code == 0, err
    finally:
        may_go_on.set()
        proxy.shutdown()
        proxy.server_close()
    (trial,) = client.trials(study)
    assert (trial.state, trial.raw["attempts"]) == ("QUEUED", 1), err


@pytest.mark.slow
def test_a_worker_told_to_stop_does_not_wait_for_a_service_that_is_away(start_service, make_spec) -> None:
    away = start_service()
    with Client(away.url, away.key) as client:
        study = client.create_study(make_spec()).id
        process = worker(away, study, "--objective", "worker_objectives:hangs", "--slots", "2")
        until(lambda: client.study(study).counts["RUNNING"] == 2)
    away.kill()
    started = time.monotonic()
    process.terminate()
    assert finish(process, 60)[0] == 0
    assert time.monotonic() - started < 40


def test_a_slot_that_is_killed_is_restarted_and_its_trial_tried_again(
    service, client: Client, make_spec, tmp_path: Path
) -> None:
    study = client.create_study(make_spec(stopping={"max_trials": 1})).id
    process = worker(
        service,
        study,
        "--objective",
        "worker_objectives:kills_itself_once",
        BO_TEST_MARK=str(tmp_path / "mark"),
    )
    code, _, err = finish(process)
    assert code == 0, err
    (trial,) = client.trials(study)
    assert (trial.number, trial.state, trial.raw["attempts"]) == (1, "COMPLETED", 2)
    assert [a["exit"] for a in client.trial(trial.id).raw["attempts_log"]] == ["error", "completed"]


def test_heartbeats_keep_a_trial_that_takes_longer_than_its_lease(service, client: Client, make_spec) -> None:
    study = client.create_study(make_spec(stopping={"max_trials": 1}, retry={"lease_seconds": 1.5})).id
    process = worker(service, study, "--objective", "worker_objectives:takes_longer_than_its_lease")
    assert finish(process)[0] == 0
    (trial,) = client.trials(study)
    assert (trial.state, trial.raw["attempts"]) == ("COMPLETED", 1)


def test_a_cancelled_trial_ends_early_with_what_it_has(service, client: Client, make_spec) -> None:
    study = client.create_study(make_spec(retry={"lease_seconds": 1.5})).id
    process = worker(
        service, study, "--objective", "worker_objectives:waits_until_stopped", "--max-trials", "1"
    )
    trial = until(lambda: next(client.trials(study, state="RUNNING"), None))
    client.cancel(trial.id)
    assert finish(process)[0] == 0
    assert (client.trial(trial.id).state, client.trial(trial.id).metrics) == ("STOPPED", {"loss": 7.0})


def test_a_command_is_filled_in_without_a_shell_and_its_last_json_line_is_the_result(
    service, client: Client, study: str
) -> None:
    script = (
        "import json, os, sys; x = float(sys.argv[1]); "
        "print('bo-report ' + json.dumps({'step': 1, 'loss': 9})); print('{\"not\": 1}'); "
        "assert json.loads(os.environ['BO_PARAMETERS'])['x'] == x; "
        "print(json.dumps({'metrics': {'loss': x}, 'cost': 1.5}))"
    )
    process = worker(service, study, "--command", f'{sys.executable} -c "{script}" {{x}}'.replace('\\"', "'"))
    code, _, err = finish(process)
    assert code == 0, err
    trials = list(client.trials(study))
    assert [t.state for t in trials] == ["COMPLETED"] * 3, trials[0].reason
    assert all(t.metrics["loss"] == t.parameters["x"] and t.cost == 1.5 for t in trials)


def test_a_command_that_fails_leaves_the_end_of_its_stderr(service, client: Client, study: str) -> None:
    process = worker(
        service,
        study,
        "--command",
        f"{sys.executable} -c \"import sys; sys.exit('no gpu {{x}}')\"",
        "--max-trials",
        "1",
    )
    assert finish(process)[0] == 0
    (trial,) = client.trials(study)
    assert trial.state == "FAILED"
    assert "exit status 1" in (trial.reason or "")
    assert "no gpu" in (trial.reason or "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--command", "train --rate {rate}"), "the command names rate, which the study does not have"),
        (("--objective", "worker_objectives:nothing"), "has no function 'nothing'"),
        (("--objective", "no_such_module:f"), "cannot import 'no_such_module'"),
        (("--objective", "quadratic"), "package.module:function"),
    ],
)
def test_a_mistake_is_told_before_anything_is_claimed(
    service, client: Client, study: str, options, message
) -> None:
    code, _, err = finish(worker(service, study, *options))
    assert code == 2
    assert message in err
    assert client.study(study).n_trials == 0


def test_optimize_in_a_notebook(client: Client, make_spec) -> None:
    result = client.optimize(make_spec(), lambda t: (t["x"] - 0.3) ** 2, trials=6, workers=2, progress=False)
    assert result.n_evaluated == 6
    assert result.best is not None
    assert result.best.metrics["loss"] == min(t.metrics["loss"] for t in client.trials(result.study.id))


def test_optimize_stops_when_the_objective_is_broken(client: Client, make_spec) -> None:
    def broken(trial: TrialHandle) -> float:
        raise KeyError("data")

    with pytest.raises(ObjectiveBroken, match="KeyError: 'data'"):
        client.optimize(make_spec(), broken, trials=20, progress=False)


def test_an_objective_that_returns_the_wrong_thing_is_told_what_to_return(client: Client, make_spec) -> None:
    with pytest.raises(ObjectiveBroken, match="return a number for loss"):
        client.optimize(make_spec(), lambda _: "good", trials=20, progress=False)


def test_the_client_explains_a_refusal_field_by_field(client: Client, make_spec) -> None:
    spec = make_spec(parameters=[{"type": "float", "name": "x", "low": 2, "high": 1}])
    with pytest.raises(Refused, match=r"parameters\.0\.high: 1 is not above low = 2 \(for a single value"):
        client.create_study(spec)


def test_a_lost_lease_has_its_own_error(client: Client, study: str) -> None:
    (first,) = client.claim(study, "w", wait_seconds=20).trials
    client.claim(study, "w")
    with pytest.raises(LeaseLost):
        client.complete(first, {"loss": 1})


def test_an_unreachable_service_is_reported_with_a_hint() -> None:
    with (
        Client("http://127.0.0.1:9", "k", patience_seconds=0.3) as nobody,
        pytest.raises(Unreachable, match="bo up"),
    ):
        nobody.info()


def test_events_are_followed_and_resumed(client: Client, study: str) -> None:
    first = next(client.events(study))
    assert first.kind == "study_created"
    client.pause(study)
    later = [event.kind for event in client.events(study, after=first.seq, follow=False)]
    assert "study_changed" in later
    assert "study_created" not in later


def test_a_retried_post_after_a_lost_answer_does_its_work_once(service, client: Client, study: str) -> None:
    """A proxy that drops the first answer stands between client and service."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    seen: list[str] = []

    class Lossy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            sent = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "content-length")}
            answer = httpx2.post(service.url + self.path, content=body, headers=sent)
            seen.append(self.headers["idempotency-key"])
            if len(seen) == 1:
                self.connection.close()
                return
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None: ...

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Lossy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        with Client(f"http://127.0.0.1:{proxy.server_port}", service.key) as lossy:
            lossy.attach(study, {"x": 0.5, "k": 1}, {"loss": 0.25})
    finally:
        proxy.shutdown()
        proxy.server_close()
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert client.study(study).n_trials == 1
