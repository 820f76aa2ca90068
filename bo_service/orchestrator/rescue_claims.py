"""Behind an overdue fit, waiting workers get labelled space-filling suggestions instead of nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from bo_service.domain.ids import SuggestionId, new_id
from bo_service.domain.job import Job, JobState
from bo_service.domain.proposal import ProposalRequest
from bo_service.domain.study import StudyState
from bo_service.domain.suggestion import Suggestion
from bo_service.domain.trial import Provenance
from bo_service.orchestrator.advance_study import DATA_FREE_LEVELS, Generate
from bo_service.orchestrator.bookkeeping import WORKER_MEMORY, n_to_prepare
from bo_service.orchestrator.ports import UnitOfWork
from bo_service.orchestrator.study_view import KnownTrials, load_view

REASON: Final = "fit_deadline: the fit takes longer than BO_FIT_DEADLINE_SECONDS"


def rescue_claims(job: Job, *, uow: UnitOfWork, generate: Generate) -> int:
    """Write as many fallback suggestions as idle workers lack; returns how many. The overdue fit goes on."""
    with uow() as store:
        study = store.studies.get(job.study_id, lock=True)
        now = store.now()
        n_slots = store.records.n_workers(study.id, since=now - WORKER_MEMORY)
        count = n_to_prepare(study, n_slots=n_slots) - store.suggestions.n_fresh(study)
        if study.state is not StudyState.ACTIVE or "fixed" in job.payload or count <= 0:
            return 0
        current = store.jobs.get(job.id)
        if current.token != job.token or current.state is not JobState.RUNNING:
            return 0
        prepared = store.suggestions.prepared(study.id)
        view = load_view(
            study,
            pending=(*store.trials.open_parameters(study.id), *(s.parameters for s in prepared)),
            n_prepared=len(prepared),
            needs_data=study.spec.space.n_configurations <= DATA_FREE_LEVELS,
            # the executor's own memory belongs to the thread that fits
            known=KnownTrials(),
            store=store,
        )
        # space-filling points cost milliseconds, so the transaction may wait for them
        proposal = generate(view, ProposalRequest(count=count, fallback_reason=REASON), None)
        store.suggestions.add(
            [
                Suggestion(
                    id=SuggestionId(new_id()),
                    study_id=study.id,
                    parameters=candidate.parameters,
                    provenance=Provenance(
                        generator=candidate.generator,
                        data_version=study.data_version,
                        seed=study.seed,
                        fallback_reason=REASON,
                    ),
                    data_version=study.data_version,
                    position=position,
                    created_at=now,
                )
                for position, candidate in enumerate(proposal.candidates)
            ]
        )
        store.studies.save(replace(study, design_index=study.design_index + len(proposal.candidates)))
        store.commit()
    return len(proposal.candidates)
