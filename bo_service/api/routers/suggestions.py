"""Routes of suggestions: enqueue, read, cancel."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from bo_service.api import answers
from bo_service.api.context import Context, Editor, Viewer, Worker
from bo_service.api.documented import from_path, leads, says
from bo_service.api.idempotency import once
from bo_service.api.schemas import EnqueueIn, Limit, StudyKey, SuggestionKey
from bo_service.api.views import suggestion_view
from bo_service.domain.errors import NotFound
from bo_service.domain.suggestion import SuggestionState
from bo_service.orchestrator.contention import retried
from bo_service.orchestrator.enqueue_configuration import cancel_suggestion, enqueue_configuration

router = APIRouter(prefix="/v1", tags=["suggestions"])


@router.post(
    "/studies/{study}/suggestions",
    **says(
        "enqueue_configuration",
        answers.Suggestion,
        status=201,
        is_once=True,
        leads_to={
            "read": leads("read_suggestion", suggestion="/id"),
            "cancel": leads("cancel_suggestion", suggestion="/id"),
            "claim": from_path("claim_trials", study="study"),
        },
    ),
)
def enqueue(study: StudyKey, body: EnqueueIn, request: Request, caller: Worker, context: Context) -> Response:
    """Have this configuration evaluated before the generated ones."""
    return once(
        request,
        body,
        lambda uow: (
            201,
            suggestion_view(
                enqueue_configuration(study, body.parameters, project_id=caller.project_id, uow=uow)
            ),
        ),
        caller=caller,
        context=context,
    )


@router.get(
    "/studies/{study}/suggestions",
    **says(
        "list_suggestions",
        answers.SuggestionPage,
        leads_to={"read": leads("read_suggestion", suggestion="/items/0/id")},
    ),
)
def page(
    study: StudyKey,
    caller: Viewer,
    context: Context,
    state: SuggestionState | None = None,
    limit: Limit = 100,
) -> JSONResponse:
    """Suggestions, newest first."""
    with context.uow(read_only=True) as store:
        found = store.suggestions.page(
            store.studies.find(caller.project_id, study).id, state=state, limit=limit
        )
    return JSONResponse({"items": [suggestion_view(s) for s in found]})


@router.get("/suggestions/{suggestion}", **says("read_suggestion", answers.Suggestion))
def read(suggestion: SuggestionKey, caller: Viewer, context: Context) -> JSONResponse:
    """One suggestion with its provenance."""
    with context.uow(read_only=True) as store:
        found = store.suggestions.get(suggestion)
        if store.studies.get(found.study_id).project_id != caller.project_id:
            raise NotFound("suggestion", suggestion)
    return JSONResponse(suggestion_view(found))


@router.delete("/suggestions/{suggestion}", **says("cancel_suggestion", answers.Suggestion))
def cancel(suggestion: SuggestionKey, caller: Editor, context: Context) -> JSONResponse:
    """Take a prepared suggestion back."""
    return JSONResponse(
        suggestion_view(
            retried(lambda: cancel_suggestion(suggestion, project_id=caller.project_id, uow=context.uow))
        )
    )
