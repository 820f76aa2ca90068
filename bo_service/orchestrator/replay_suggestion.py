"""Compute a stored suggestion again from the data it was made from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bo_service.domain.errors import Conflict
from bo_service.domain.ids import FitId, SuggestionId
from bo_service.domain.proposal import ProposalRequest
from bo_service.domain.records import EventKind
from bo_service.domain.spec import StudySpec
from bo_service.domain.study import Study
from bo_service.domain.suggestion import Suggestion, SuggestionSource
from bo_service.orchestrator.advance_study import Generate
from bo_service.orchestrator.ports import Store, UnitOfWork
from bo_service.orchestrator.study_view import inputs_as_view


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A suggestion beside what the same inputs give now."""

    suggestion: Suggestion
    recomputed: dict[str, Any] | None
    acquisition_value: float | None
    is_identical: bool


def replay_suggestion(suggestion_id: SuggestionId, *, uow: UnitOfWork, generate: Generate) -> Replay:
    """Run the fit again with its seed, data version, pending points and warm start; nothing is written.

    Raises: NotFound; Conflict where a user made the suggestion, or no fit was stored with it.
    """
    with uow(read_only=True) as store:
        suggestion = store.suggestions.get(suggestion_id)
        fit_id = suggestion.provenance.fit_id
        if suggestion.source is SuggestionSource.ENQUEUED or fit_id is None:
            raise Conflict("there is nothing to replay: no fit was stored with this suggestion")
        fit = store.records.fit(fit_id)
        study = store.studies.get(suggestion.study_id)
        study = replace(study, spec=_spec_at(int(fit.inputs["spec_version"]), study, store))
        trials = tuple(store.trials.known(study.id, up_to_version=int(fit.inputs["data_version"])))
        warm_id = fit.inputs["warm_fit_id"]
        warm_state = store.records.fit(FitId(warm_id)).state if warm_id else None
    request = ProposalRequest(
        count=fit.inputs["count"], fixed=fit.inputs["fixed"], fallback_reason=fit.inputs["fallback_reason"]
    )
    proposal = generate(inputs_as_view(fit.inputs, study, trials), request, warm_state)
    again = (
        proposal.candidates[suggestion.position] if suggestion.position < len(proposal.candidates) else None
    )
    return Replay(
        suggestion=suggestion,
        recomputed=again.parameters if again else None,
        acquisition_value=again.acquisition_value if again else None,
        is_identical=again is not None
        and again.parameters == suggestion.parameters
        and again.acquisition_value == suggestion.provenance.acquisition_value,
    )


def _spec_at(version: int, study: Study, store: Store) -> StudySpec:
    """The study's specification as it was at a version: edits keep the one before them."""
    if version == study.spec_version:
        return study.spec
    after = 0
    while events := store.records.events(study.id, after=after, limit=500):
        for event in events:
            if event.kind is EventKind.STUDY_CHANGED and event.payload.get("spec_version") == version + 1:
                return StudySpec.model_validate(event.payload["previous_spec"])
        after = events[-1].seq
    raise Conflict(f"version {version} of the specification is not kept")
