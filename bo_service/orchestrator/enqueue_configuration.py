"""A user's own configuration goes to the head of the suggestions; it may be cancelled until it is claimed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bo_service.domain.errors import Conflict, Invalid, NotFound
from bo_service.domain.ids import ProjectId, SuggestionId, new_id
from bo_service.domain.suggestion import Suggestion, SuggestionSource, SuggestionState
from bo_service.domain.trial import Provenance
from bo_service.orchestrator.ports import UnitOfWork
from surrogates.errors import InvalidConfiguration


def enqueue_configuration(
    study_key: str, parameters: Mapping[str, Any], *, project_id: ProjectId, uow: UnitOfWork
) -> Suggestion:
    """Put a configuration before the generated ones. Raises: NotFound, Invalid, StudyClosed."""
    with uow() as store:
        study = store.studies.find(project_id, study_key, lock=True)
        study.require_open()
        try:
            canonical = study.spec.space.canonical(parameters)
        except InvalidConfiguration as error:
            raise Invalid([problem.under("parameters") for problem in error.problems]) from error
        suggestion = Suggestion(
            id=SuggestionId(new_id()),
            study_id=study.id,
            source=SuggestionSource.ENQUEUED,
            parameters=canonical,
            provenance=Provenance(generator="user", data_version=study.data_version),
            data_version=study.data_version,
            is_timeless=True,
            created_at=store.now(),
        )
        store.suggestions.add([suggestion])
        store.commit()
    return suggestion


def cancel_suggestion(suggestion_id: SuggestionId, *, project_id: ProjectId, uow: UnitOfWork) -> Suggestion:
    """Take back a prepared suggestion. Raises: NotFound, Conflict where it is no longer PREPARED."""
    with uow() as store:
        suggestion = store.suggestions.get(suggestion_id)
        study = store.studies.get(suggestion.study_id, lock=True)
        if study.project_id != project_id:
            raise NotFound("suggestion", suggestion_id)
        suggestion = store.suggestions.get(suggestion_id)
        if suggestion.state is SuggestionState.CANCELLED:
            return suggestion
        if suggestion.state is not SuggestionState.PREPARED:
            raise Conflict(
                f"suggestion is already {suggestion.state.value}",
                hint="cancel its trial instead" if suggestion.trial_id else "",
                trial_id=suggestion.trial_id,
            )
        cancelled = suggestion.moved_to(SuggestionState.CANCELLED)
        store.suggestions.save([cancelled])
        store.commit()
    return cancelled
