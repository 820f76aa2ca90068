"""What every store keeps: on SQLite and on PostgreSQL, with real threads."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace

import pytest
from sqlalchemy import select, text

from bo_service.bootstrap import Services, broken_invariants, build_services
from bo_service.domain.errors import Conflict, Invalid, NameTaken, TrialClosed
from bo_service.domain.ids import ProjectId
from bo_service.domain.proposal import Measurement
from bo_service.domain.records import EventKind, StoredReply
from bo_service.domain.study import Study, StudyState
from bo_service.domain.trial import AttemptExit, Trial, TrialState
from bo_service.orchestrator.bookkeeping import close_trial
from bo_service.orchestrator.claim_trials import ClaimRequest, claim_trials
from bo_service.orchestrator.edit_study import edit_study
from bo_service.orchestrator.renew_lease import renew_lease
from bo_service.storage import rows
from bo_service.storage.studies import STUDIES, locked_study
from tests.steps import advance_all, claim, complete, counted, fill, new_study, run_jobs


def test_a_name_is_unique_in_its_project_alone(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    with pytest.raises(NameTaken):
        new_study(services, project, make_spec, name=study.spec.name)
    with services.uow() as store:
        other = store.records.ensure_project("other", now=store.now())
        store.commit()
    assert new_study(services, other, make_spec, name=study.spec.name).id != study.id


def test_without_commit_nothing_lasts(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    with services.uow() as store:
        store.studies.save(replace(store.studies.get(study.id, lock=True), next_number=99))
    with services.uow(read_only=True) as store:
        assert store.studies.get(study.id).next_number == 1


@pytest.mark.parametrize(
    "texts",
    [
        ["C:\\u0000"],
        ["\\u0000", '\\u0000"', '"\\u0000', "\\\\u0000"],
        ["1e+5", '"1e+5"', "e+"],
        [1e20, "100000000000000000000.0", -1e300, 1e15, 10**20],
    ],
)
def test_free_json_comes_back_as_it_was(services, project, make_spec, texts) -> None:
    """Beside large floats, which JSONB would give back as integers."""
    names = {str(text): i for i, text in enumerate(texts)}
    metadata = {"note": texts, "tokens": [1e20, {"n": -1.5e23}], "names": names}
    study = new_study(services, project, make_spec, metadata=metadata)
    with services.transactions(read_only=True) as (connection, _):
        query = text("SELECT spec FROM studies WHERE id = :id").columns(spec=STUDIES.c.spec.type)
        kept = connection.execute(query, {"id": study.id}).scalar_one()["metadata"]
    assert kept == metadata
    assert repr(kept["note"]) == repr(texts)
    assert repr(kept["tokens"]) == repr(metadata["tokens"])


def test_threads_read_more_studies_than_are_remembered(services, project, make_spec, monkeypatch) -> None:
    monkeypatch.setattr(rows, "MAX_SPECS", 16)
    studies = [new_study(services, project, make_spec, name=f"study-{i}") for i in range(40)]
    wrong: list[str] = []

    def read(start: int) -> None:
        with services.uow(read_only=True) as store:
            for i in range(start, start + 300):
                study = studies[i * 7 % len(studies)]
                try:
                    # the transaction is read-only, so that the threads do not wait for each other
                    found = locked_study(row_of(store, study), store.studies.connection)
                except (KeyError, RuntimeError, ValueError) as error:
                    wrong.append(repr(error))
                else:
                    wrong.extend([found.spec.name] if found.spec.name != study.spec.name else [])

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=read, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert wrong == []


def row_of(store, study: Study):
    return store.studies.connection.execute(select(STUDIES).where(STUDIES.c.id == study.id)).one()


def test_threads_never_share_a_trial_or_a_number(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    run_jobs(services)
    given: list[Trial] = []
    lock = threading.Lock()

    def work(name: str) -> None:
        for _ in range(4):
            for trial in claim(services, study, name):
                with lock:
                    given.append(trial)
                complete(services, trial, project, trial.number)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run_jobs(services)
    assert len(given) >= 10
    assert len({t.id for t in given}) == len(given)
    assert sorted(t.number for t in given) == list(range(1, len(given) + 1))
    with services.uow(read_only=True) as store:
        found = store.studies.get(study.id)
    assert found.n(TrialState.COMPLETED) == len(given)
    assert found.best_value == 1.0


def test_every_attempt_has_its_own_curve(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    run_jobs(services)
    (trial,) = claim(services, study)
    with services.uow() as store:
        now = store.now()
        for step, value in ((1, 0.9), (2, 0.8)):
            store.trials.observe(trial, step, {"loss": Measurement(value=value)}, now)
        again = replace(trial, attempt=trial.attempt + 1)
        store.trials.observe(again, 1, {"loss": Measurement(value=0.91)}, now)
        curve = [(o.step, o.attempt, o.value) for o in store.trials.observations(trial.id)]
    assert curve == [(1, 2, 0.91), (2, 1, 0.8)]


def test_leftovers_for_fixed_values_do_not_hold_a_study_open(services, project, make_spec) -> None:
    choices = [{"type": "categorical", "name": "c", "choices": list("abcd")}]
    study = new_study(
        services, project, make_spec, parameters=choices, surrogate={"name": "gp"}, initial={"size": 1}
    )
    request = ClaimRequest(worker="gone", fixed={"c": "d"}, reclaim=False)
    claim_trials(study.id, request, project_id=project, uow=services.uow)
    advance_all(services)
    with services.uow(read_only=True) as store:
        assert [s.fixed_key != "" for s in store.suggestions.prepared(study.id)].count(True) == 1
    for i in range(6):
        for trial in claim(services, study):
            complete(services, trial, project, float(i))
        advance_all(services)
    with services.uow(read_only=True) as store:
        found = store.studies.get(study.id)
        kinds = [e.kind for e in store.records.events(study.id, after=0, limit=100)]
    assert found.state is StudyState.STOPPED
    assert found.n_closed == 4
    assert EventKind.STUDY_CHANGED in kinds


def test_a_new_surrogate_stands_before_what_the_old_one_prepared(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    advance_all(services)
    edit_study(study.id, {"surrogate": {"name": "gp"}}, project_id=project, uow=services.uow)
    with services.uow(read_only=True) as store:
        assert store.suggestions.prepared(study.id) == []


def test_one_key_sent_twice_at_once_acts_once(services, project) -> None:
    reply = StoredReply(request_hash="h", status=201, body="{}")
    n_acted = 0
    ready = threading.Barrier(4)

    def act() -> None:
        nonlocal n_acted
        ready.wait()
        with services.uow() as store:
            if store.records.reply(project, "key") is None:
                n_acted += 1
                store.records.remember_reply(project, "key", reply, now=store.now())
                store.commit()

    threads = [threading.Thread(target=act) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert n_acted == 1


def test_observations_are_final(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    run_jobs(services)
    (trial,) = claim(services, study)
    with services.uow() as store:
        store.trials.observe(trial, 1, {"loss": Measurement(value=2.0)}, store.now())
        store.trials.observe(trial, 1, {"loss": Measurement(value=2.0)}, store.now())
        with pytest.raises(Conflict, match="already recorded as 2"):
            store.trials.observe(trial, 1, {"loss": Measurement(value=3.0)}, store.now())


def test_pages_are_complete_while_rows_are_added(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    fill(services, study, 25)
    numbers: list[int] = []
    cursor = None
    while True:
        with services.uow(read_only=True) as store:
            page = store.trials.page(study.id, cursor=cursor, limit=10)
        numbers += [trial.number for trial in page.items]
        cursor = page.next_cursor
        if len(numbers) == 10:
            fill(services, study, 3)
        if cursor is None:
            break
    assert numbers == list(range(1, 29))
    with services.uow(read_only=True) as store, pytest.raises(Invalid, match="cursor"):
        store.trials.page(study.id, cursor="nonsense")


def test_pages_by_change_are_complete(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    fill(services, study, 25)
    seen: list[int] = []
    cursor = None
    while True:
        with services.uow(read_only=True) as store:
            page = store.trials.page(study.id, updated_since=study.created_at, cursor=cursor, limit=7)
        seen += [trial.number for trial in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert sorted(seen) == list(range(1, 26))


def test_replies_are_kept_for_their_project(services, project) -> None:
    with services.uow() as store:
        reply = StoredReply(request_hash="h", status=201, body="{}")
        store.records.remember_reply(project, "key", reply, now=store.now())
        store.commit()
    with services.uow(read_only=True) as store:
        assert store.records.reply(project, "key") == reply
        assert store.records.reply(ProjectId("other"), "key") is None


def statements(services: Services, study: Study, project: ProjectId) -> dict[str, int]:
    """How many statements each hot path takes now."""
    counts: dict[str, int] = {}
    claim(services, study)
    run_jobs(services)
    with counted(services) as sent:
        (trial,) = claim(services, study)
    counts["claim"] = len(sent)
    assert trial.lease is not None
    with counted(services) as sent:
        renew_lease(trial.id, trial.lease, project_id=project, uow=services.uow)
    counts["heartbeat"] = len(sent)
    with counted(services) as sent:
        complete(services, trial, project, 1e6)
    counts["complete"] = len(sent)
    with counted(services) as sent, services.uow(read_only=True) as store:
        found = store.studies.find(project, study.id)
        assert found.best_trial_id is not None
        store.trials.get(found.best_trial_id)
    counts["best"] = len(sent)
    with counted(services) as sent, services.uow(read_only=True) as store:
        store.trials.page(store.studies.find(project, study.id).id, limit=100)
    counts["page"] = len(sent)
    return counts


def test_the_hot_paths_take_a_fixed_number_of_statements(services, project, make_spec) -> None:
    study = new_study(services, project, make_spec)
    fill(services, study, 20)
    run_jobs(services)
    few = statements(services, study, project)
    fill(services, study, 400)
    run_jobs(services)
    many = statements(services, study, project)
    assert many == few
    allowance = 3 if services.transactions.is_sqlite else 4
    assert few["claim"] <= 12 + allowance
    assert few["heartbeat"] <= 5 + allowance
    assert few["complete"] <= 11 + allowance
    assert few["best"] <= 2 + allowance
    assert few["page"] <= 2 + allowance


def test_a_heartbeat_waits_for_nobody_who_works_on_the_study(services, project, make_spec) -> None:
    if services.transactions.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    study = new_study(services, project, make_spec)
    run_jobs(services)
    (trial,) = claim(services, study)
    hurried = services.settings.model_copy(update={"database_statement_seconds": 5.0})
    others = build_services(hurried)
    with services.uow() as store:
        store.studies.get(study.id, lock=True)
        reply = renew_lease(trial.id, trial.lease, project_id=project, uow=others.uow)
    others.close()
    with services.uow(read_only=True) as store:
        assert store.trials.get(trial.id).lease_expires_at == reply.lease_expires_at
        assert store.trials.attempts(trial.id)[-1].lease_expires_at == reply.lease_expires_at


def test_a_heartbeat_beside_the_trials_end_changes_nothing_and_says_so(services, project, make_spec) -> None:
    if services.transactions.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    study = new_study(services, project, make_spec)
    run_jobs(services)
    (trial,) = claim(services, study)
    said: list[BaseException] = []

    def beat() -> None:
        try:
            renew_lease(trial.id, trial.lease, project_id=project, uow=services.uow)
        except TrialClosed as error:
            said.append(error)

    thread = threading.Thread(target=beat)
    with services.uow() as store:
        found, locked = store.trials.with_study(trial.id, lock=True)
        thread.start()
        while thread.is_alive() and not n_waiting(services):
            time.sleep(0.01)
        close_trial(
            found, TrialState.ABANDONED, AttemptExit.ABANDONED, study=locked, store=store, now=store.now()
        )
        store.commit()
    thread.join()
    assert [error.code for error in said] == ["trial_closed"]
    with services.uow(read_only=True) as store:
        assert store.trials.get(trial.id).state is TrialState.ABANDONED
    assert broken_invariants(services) == []


def n_waiting(services: Services) -> int:
    """Statements that wait for another transaction's lock."""
    with services.transactions(read_only=True) as (connection, _):
        return int(connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())
