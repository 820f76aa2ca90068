"""Behind an overdue fit, waiting workers get labelled space-filling suggestions instead of nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from bo_service.domain.ids import SuggestionId, new_id
from bo_service.domain.job import Job
from bo_service.domain.proposal import ProposalRequest, StudyView
from bo_service.domain.study import StudyState
from bo_service.domain.suggestion import Suggestion
from bo_service.domain.trial import Provenance
from bo_service.orchestrator.advance_study import Generate
from bo_service.orchestrator.bookkeeping import WORKER_MEMORY, n_to_prepare
from bo_service.orchestrator.ports import UnitOfWork

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
        view = StudyView(
            spec=study.spec, seed=study.seed, data_version=study.data_version, design_index=study.design_index
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
