"""Steps that tests take on a store: through use cases, without HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sqlalchemy import event

from bo_service.bootstrap import Services
from bo_service.domain.ids import JobId, LeaseToken, ProjectId
from bo_service.domain.proposal import Candidate, FitRecord, Measurement, Proposal, ProposalRequest, StudyView
from bo_service.domain.spec import StudySpec
from bo_service.domain.study import Study
from bo_service.domain.trial import Trial
from bo_service.orchestrator.advance_study import advance_study
from bo_service.orchestrator.attach_trials import GivenTrial, import_trials
from bo_service.orchestrator.claim_trials import ClaimRequest, claim_trials
from bo_service.orchestrator.create_study import create_study
from bo_service.orchestrator.reap import claim_job
from bo_service.orchestrator.record_observation import Outcome, record_observation
from bo_service.orchestrator.study_view import KnownTrials
from surrogates.sampling import space_filling
from workers.tasks import generate


def draw(view: StudyView, request: ProposalRequest, warm_state: bytes | None) -> Proposal:
    """A generator without a model: the store does not care."""
    points = space_filling(view.spec.space, request.count, seed=view.seed, start=view.design_index)
    candidates = tuple(Candidate(parameters=p, generator="sobol") for p in points)
    return Proposal(candidates=candidates, fit=FitRecord(surrogate="sobol", state=None))


def run_jobs(services: Services) -> int:
    """Run queued jobs until none is left."""
    n = 0
    while (job := claim_job(LeaseToken(f"test:{n}"), lease_seconds=60, uow=services.uow)) is not None:
        advance_study(job, uow=services.uow, generate=draw, known=KnownTrials())
        n += 1
    return n


def advance_all(services: Services) -> None:
    """Run queued jobs with the real generators."""
    known = KnownTrials()
    while (job := claim_job(LeaseToken("test"), lease_seconds=60, uow=services.uow)) is not None:
        advance_study(job, uow=services.uow, generate=generate, known=known)


def end_pause(services: Services, job_id: JobId) -> None:
    """Let a job that rests be due now."""
    with services.uow() as store:
        store.jobs.save(replace(store.jobs.get(job_id), ready_at=store.now()))
        store.commit()


def new_study(services: Services, project: ProjectId, make_spec, **changes: Any) -> Study:
    return create_study(StudySpec.model_validate(make_spec(**changes)), project_id=project, uow=services.uow)


def claim(services: Services, study: Study, worker: str = "w", count: int = 1) -> tuple[Trial, ...]:
    request = ClaimRequest(worker=worker, count=count, fixed={}, reclaim=False)
    return claim_trials(study.id, request, project_id=study.project_id, uow=services.uow).trials


def complete(services: Services, trial: Trial, project: ProjectId, value: float) -> Trial:
    outcome = Outcome(measurements={"loss": Measurement(value=value)})
    assert trial.lease is not None
    return record_observation(trial.id, outcome, lease=trial.lease, project_id=project, uow=services.uow)


def fill(services: Services, study: Study, n: int) -> None:
    rows = [
        GivenTrial(parameters=p, outcome=Outcome(measurements={"loss": Measurement(value=float(i + 1))}))
        for i, p in enumerate(space_filling(study.spec.space, n, seed=5))
    ]
    import_trials(
        study.id, rows, dry_run=False, skip_bad_rows=False, project_id=study.project_id, uow=services.uow
    )


@contextmanager
def counted(services: Services) -> Iterator[list[str]]:
    """The statements sent to the database."""
    sent: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(services.transactions.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(services.transactions.engine, "before_cursor_execute", note)
