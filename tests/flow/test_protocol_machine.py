"""A state machine drives the whole protocol against a small model of it, kept in memory."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from sqlalchemy import text

from bo_service.bootstrap import build_services, ensure_default_project, upgrade_database
from bo_service.domain.errors import LeaseLost, StudyClosed, TrialClosed
from bo_service.domain.ids import LeaseToken, TrialId
from bo_service.domain.proposal import Candidate, FitRecord, Measurement, Proposal, ProposalRequest, StudyView
from bo_service.domain.spec import StudySpec
from bo_service.domain.study import StudyState
from bo_service.domain.trial import AttemptExit, Trial, TrialState
from bo_service.orchestrator.advance_study import advance_study
from bo_service.orchestrator.attach_trials import GivenTrial, attach_trial
from bo_service.orchestrator.change_state import change_state
from bo_service.orchestrator.claim_trials import ClaimRequest, claim_trials
from bo_service.orchestrator.create_study import create_study
from bo_service.orchestrator.end_attempt import (
    abandon_trial,
    cancel_trial,
    fail_trial,
    mark_infeasible,
    release_trial,
)
from bo_service.orchestrator.enqueue_configuration import enqueue_configuration
from bo_service.orchestrator.reap import claim_job
from bo_service.orchestrator.record_observation import Outcome, record_observation
from bo_service.orchestrator.record_progress import record_progress
from bo_service.orchestrator.renew_lease import renew_lease
from bo_service.orchestrator.study_view import KnownTrials
from bo_service.settings import Settings
from surrogates.sampling import space_filling
from workers.house import Housekeeper

MAX_ATTEMPTS = 2
PARALLELISM = 3
WORKERS = st.sampled_from(["w1", "w2", "w3"])
VALUES = st.one_of(st.integers(-5, 5).map(float), st.just(math.nan))


def draw(view: StudyView, request: ProposalRequest, warm_state: bytes | None) -> Proposal:
    points = space_filling(view.spec.space, request.count, seed=view.seed, start=view.design_index)
    candidates = tuple(Candidate(parameters=p, generator="sobol") for p in points)
    return Proposal(candidates=candidates, fit=FitRecord(surrogate="sobol", state=None))


@dataclass
class Expected:
    """A trial as the model has it."""

    number: int
    state: TrialState
    worker: str | None = None
    lease: str | None = None
    n_counted: int = 0
    attempt: int = 0
    stop_requested: bool = False
    value: float | None = None
    result: str | None = None
    """What was reported at the end, as text: NaN equals NaN there."""


@dataclass
class Model:
    """The study as it should be."""

    trials: dict[str, Expected] = field(default_factory=dict)
    state: StudyState = StudyState.ACTIVE
    enqueued: list[float] = field(default_factory=list)

    def n(self, state: TrialState) -> int:
        return sum(t.state is state for t in self.trials.values())

    def best(self) -> float | None:
        done = [
            t.value for t in self.trials.values() if t.state is TrialState.COMPLETED and t.value is not None
        ]
        return min(done, default=None)


class Protocol(RuleBasedStateMachine):
    """Steps of the loop in any order; after each, the store and the model agree."""

    claimed = Bundle("claimed")

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        configuration = Settings(home=Path(self.folder.name))
        upgrade_database(configuration)
        self.services = build_services(configuration)
        self.uow = self.services.uow
        self.project = ensure_default_project(self.uow)
        spec = StudySpec.model_validate(
            {
                "name": "machine",
                "parameters": [{"type": "float", "name": "x", "low": 0, "high": 1}],
                "metrics": [{"name": "loss", "goal": "minimize"}],
                "surrogate": {"name": "sobol"},
                "seed": 1,
                "parallelism": PARALLELISM,
                "retry": {"max_attempts": MAX_ATTEMPTS},
            }
        )
        self.study = create_study(spec, project_id=self.project, uow=self.uow)
        self.model = Model()
        self.known = KnownTrials()
        self.terminal: dict[str, Trial] = {}
        self.compute()

    def teardown(self) -> None:
        if hasattr(self, "services"):
            self.services.transactions.engine.dispose()
            self.folder.cleanup()

    @rule()
    def compute(self) -> None:
        n = 0
        while (job := claim_job(LeaseToken(f"m{n}"), lease_seconds=60, uow=self.uow)) is not None:
            advance_study(job, uow=self.uow, generate=draw, known=self.known)
            n += 1
            assert n < 20, "jobs breed jobs"

    @rule(target=claimed, worker=WORKERS, count=st.integers(1, 3), reclaim=st.booleans())
    def claim(self, worker: str, count: int, *, reclaim: bool):
        self.compute()
        request = ClaimRequest(worker=worker, count=count, fixed={}, reclaim=reclaim)
        reply = claim_trials(self.study.id, request, project_id=self.project, uow=self.uow)
        if self.model.state is not StudyState.ACTIVE:
            assert reply.trials == ()
            return multiple()
        own = [
            i for i, t in self.model.trials.items() if t.state is TrialState.RUNNING and t.worker == worker
        ]
        own = own[:count] if reclaim else []
        assert [t.id for t in reply.trials[: len(own)]] == own
        n_room = max(PARALLELISM - self.model.n(TrialState.RUNNING), 0)
        queued = [i for i, t in self.model.trials.items() if t.state is TrialState.QUEUED]
        queued = queued[: min(count - len(own), n_room)]
        assert [t.id for t in reply.trials[len(own) : len(own) + len(queued)]] == queued
        new = reply.trials[len(own) + len(queued) :]
        assert len(new) <= min(count - len(own) - len(queued), n_room - len(queued))
        for trial in new:
            self.model.trials[trial.id] = Expected(number=trial.number, state=TrialState.QUEUED)
            if self.model.enqueued:
                assert trial.parameters["x"] == self.model.enqueued.pop(0)
        for trial in reply.trials:
            expected = self.model.trials[trial.id]
            if trial.id not in own:
                expected.attempt += 1
                expected.n_counted += 1
            assert expected.lease != trial.lease
            expected.state, expected.worker, expected.lease = TrialState.RUNNING, worker, trial.lease
        return multiple(*[(t.id, t.lease) for t in reply.trials])

    def refusal(self, key: tuple[str, str]) -> type[Exception] | None:
        """How a report under this lease must be refused, if it must."""
        expected = self.model.trials[key[0]]
        if not expected.state.is_open:
            return TrialClosed
        return None if expected.state is TrialState.RUNNING and expected.lease == key[1] else LeaseLost

    def report(self, key: tuple[str, str], act) -> Trial | None:
        """Do something under a lease; None where it was refused, as it had to be."""
        expected = self.refusal(key)
        if expected is None:
            return act(TrialId(key[0]), LeaseToken(key[1]))
        with pytest.raises(expected):
            act(TrialId(key[0]), LeaseToken(key[1]))
        return None

    @rule(key=claimed)
    def heartbeat(self, key) -> None:
        reply = self.report(
            key, lambda t, lease: renew_lease(t, lease, project_id=self.project, uow=self.uow)
        )
        if reply is not None:
            stopped = self.model.state in (StudyState.STOPPED, StudyState.ARCHIVED)
            assert reply.should_stop == (self.model.trials[key[0]].stop_requested or stopped)

    @rule(key=claimed, step=st.integers(0, 3))
    def progress(self, key, step: int) -> None:
        values = {"loss": Measurement(value=float(step))}
        self.report(
            key,
            lambda t, lease: record_progress(
                t, step, values, lease=lease, project_id=self.project, uow=self.uow
            ),
        )

    @rule(key=claimed, value=VALUES, early=st.booleans())
    def complete(self, key, value: float, *, early: bool) -> None:
        outcome = Outcome(measurements={"loss": Measurement(value=value)}, is_stopped_early=early)
        expected = self.model.trials[key[0]]
        is_repeat = not expected.state.is_open and expected.lease == key[1] and expected.result == str(value)
        if is_repeat:
            again = record_observation(
                TrialId(key[0]), outcome, lease=LeaseToken(key[1]), project_id=self.project, uow=self.uow
            )
            assert again.state is expected.state
            return
        closed = self.report(
            key,
            lambda t, lease: record_observation(
                t, outcome, lease=lease, project_id=self.project, uow=self.uow
            ),
        )
        if closed is not None:
            expected.result = str(value)
            if math.isnan(value):
                expected.state = TrialState.FAILED
            else:
                expected.state = TrialState.STOPPED if early else TrialState.COMPLETED
                expected.value = value

    @rule(key=claimed, retry=st.booleans())
    def fail(self, key, *, retry: bool) -> None:
        closed = self.report(
            key,
            lambda t, lease: fail_trial(
                t, "r", how=AttemptExit.ERROR, retry=retry, lease=lease, project_id=self.project, uow=self.uow
            ),
        )
        if closed is not None:
            self.ended(key[0], may_retry=retry)

    def ended(self, trial_id: str, *, may_retry: bool) -> None:
        expected = self.model.trials[trial_id]
        again = may_retry and expected.n_counted < MAX_ATTEMPTS and not expected.stop_requested
        expected.state = TrialState.QUEUED if again else TrialState.FAILED

    @rule(key=claimed)
    def infeasible(self, key) -> None:
        done = self.report(
            key, lambda t, lease: mark_infeasible(t, "r", lease=lease, project_id=self.project, uow=self.uow)
        )
        if done is not None:
            self.model.trials[key[0]].state = TrialState.INFEASIBLE

    @rule(key=claimed)
    def release(self, key) -> None:
        done = self.report(
            key, lambda t, lease: release_trial(t, lease=lease, project_id=self.project, uow=self.uow)
        )
        if done is not None:
            expected = self.model.trials[key[0]]
            if expected.stop_requested:
                expected.state = TrialState.ABANDONED
            else:
                expected.state = TrialState.QUEUED
                expected.n_counted -= 1

    @rule(key=claimed)
    def abandon(self, key) -> None:
        expected = self.model.trials[key[0]]
        if expected.state.is_open:
            abandon_trial(TrialId(key[0]), "r", project_id=self.project, uow=self.uow)
            expected.state = TrialState.ABANDONED
        else:
            with pytest.raises(TrialClosed):
                abandon_trial(TrialId(key[0]), "r", project_id=self.project, uow=self.uow)

    @rule(key=claimed)
    def cancel(self, key) -> None:
        expected = self.model.trials[key[0]]
        if not expected.state.is_open:
            with pytest.raises(TrialClosed):
                cancel_trial(TrialId(key[0]), None, project_id=self.project, uow=self.uow)
            return
        cancel_trial(TrialId(key[0]), None, project_id=self.project, uow=self.uow)
        if expected.state is TrialState.RUNNING:
            expected.stop_requested = True
        else:
            expected.state = TrialState.ABANDONED

    @rule(key=claimed)
    def let_the_lease_run_out(self, key) -> None:
        expected = self.model.trials[key[0]]
        if expected.state is not TrialState.RUNNING:
            return
        with self.services.transactions(read_only=False) as (connection, commit):
            past = (self.study.created_at - timedelta(hours=1)).replace(tzinfo=None)
            connection.execute(
                text("UPDATE trials SET lease_expires_at = :past WHERE id = :id"),
                {"past": past.isoformat(" "), "id": key[0]},
            )
            commit()
        assert Housekeeper(self.uow).round() == 1
        self.ended(key[0], may_retry=True)

    @rule(x=st.integers(0, 100).map(lambda i: i / 100), value=st.integers(-5, 5).map(float))
    def attach(self, x: float, value: float) -> None:
        given = GivenTrial(
            parameters={"x": x}, outcome=Outcome(measurements={"loss": Measurement(value=value)})
        )
        trial = attach_trial(self.study.id, given, project_id=self.project, uow=self.uow)
        self.model.trials[trial.id] = Expected(number=trial.number, state=TrialState.COMPLETED, value=value)

    @rule(x=st.integers(0, 100).map(lambda i: i / 100))
    def enqueue(self, x: float) -> None:
        enqueue_configuration(self.study.id, {"x": x}, project_id=self.project, uow=self.uow)
        self.model.enqueued.append(x)

    @rule(state=st.sampled_from([StudyState.ACTIVE, StudyState.PAUSED, StudyState.STOPPED]))
    def move(self, state: StudyState) -> None:
        if state is StudyState.PAUSED and self.model.state is StudyState.STOPPED:
            with pytest.raises(StudyClosed):
                change_state(self.study.id, state, reason=None, project_id=self.project, uow=self.uow)
            return
        change_state(self.study.id, state, reason=None, project_id=self.project, uow=self.uow)
        self.model.state = state

    @invariant()
    def the_store_agrees_with_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        with self.uow(read_only=True) as store:
            study = store.studies.get(self.study.id)
            trials = list(store.trials.page(self.study.id, limit=1000).items)
            attempts = {t.id: store.trials.attempts(t.id) for t in trials}
        assert study.state is self.model.state
        assert {t.id: (t.number, t.state) for t in trials} == {
            i: (e.number, e.state) for i, e in self.model.trials.items()
        }
        assert [t.number for t in trials] == list(range(1, len(trials) + 1))
        for state in TrialState:
            assert study.n(state) == self.model.n(state)
        assert study.best_value == self.model.best()
        for trial in trials:
            expected = self.model.trials[trial.id]
            assert len(attempts[trial.id]) == expected.attempt
            n_open = sum(a.exit is AttemptExit.RUNNING for a in attempts[trial.id])
            assert n_open == (trial.state is TrialState.RUNNING)
            if not trial.state.is_open:
                assert self.terminal.setdefault(trial.id, trial).measurements == trial.measurements


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
