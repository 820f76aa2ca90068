"""Routes of studies: create, read, edit, state, branch, results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from bo_service.api import answers
from bo_service.api.context import ApiContext, Caller, Context, Editor, Viewer
from bo_service.api.documented import from_path, leads, says
from bo_service.api.idempotency import once
from bo_service.api.schemas import BranchIn, Cursor, Instant, Limit, ReasonIn, StudyKey
from bo_service.api.tables import to_csv, to_json_lines
from bo_service.api.views import fit_view, study_summary, study_view, trial_view
from bo_service.domain.errors import Invalid
from bo_service.domain.spec import StudySpec
from bo_service.domain.study import Study, StudyState
from bo_service.domain.trial import Trial, TrialState
from bo_service.orchestrator.branch_study import branch_study
from bo_service.orchestrator.change_state import change_state
from bo_service.orchestrator.contention import retried
from bo_service.orchestrator.create_study import create_study
from bo_service.orchestrator.edit_study import edit_study
from bo_service.orchestrator.ports import Store
from surrogates.errors import Problem

router = APIRouter(prefix="/v1/studies", tags=["studies"])

EXPORT_PAGE: Final = 1000
EXPORT_CHUNK: Final = 250

TO_STUDY: Final = {
    "read": leads("read_study", study="/id"),
    "edit": leads("edit_study", study="/id"),
    "claim": leads("claim_trials", study="/id"),
    "attach": leads("attach_trial", study="/id"),
    "enqueue": leads("enqueue_configuration", study="/id"),
    "trials": leads("list_trials", study="/id"),
    "suggestions": leads("list_suggestions", study="/id"),
    "fits": leads("list_fits", study="/id"),
    "pareto": leads("read_front", study="/id"),
    "pause": leads("pause_study", study="/id"),
    "stop": leads("stop_study", study="/id"),
}
AGAIN: Final = {
    "resume": from_path("resume_study", study="study"),
    "claim": from_path("claim_trials", study="study"),
}
EXPORTS: Final = {
    "text/csv": "a header and one line for every closed trial",
    "application/x-ndjson": "one JSON object for every closed trial",
}


def full_view(study: Study, *, store: Store) -> dict[str, Any]:
    """A study with its incumbent and the number of suggestions ready."""
    best = store.trials.get(study.best_trial_id) if study.best_trial_id else None
    return study_view(study, best=best, n_prepared=store.suggestions.n_fresh(study))


def refuse_push_without_broker(push: Any, *, context: ApiContext, path: str = "push") -> None:
    """Raises: Invalid where a study should push trials, and nobody would send the messages."""
    if push is not None and not context.has_broker:
        hint = "start the service with BO_COMPUTE=external and a broker, or leave it out and run `bo work`"
        raise Invalid([Problem(path, "this service has no broker to push trials through", hint)])


@router.post("", **says("create_study", answers.StudyInFull, status=201, is_once=True, leads_to=TO_STUDY))
def create(spec: StudySpec, request: Request, caller: Editor, context: Context) -> Response:
    """Create a study; its first suggestions are on the way when this returns."""
    refuse_push_without_broker(spec.push, context=context)
    return once(
        request,
        spec,
        lambda uow: (
            201,
            study_view(create_study(spec, project_id=caller.project_id, uow=uow), n_prepared=0),
        ),
        caller=caller,
        context=context,
    )


@router.get(
    "",
    **says("list_studies", answers.StudyPage, leads_to={"read": leads("read_study", study="/items/0/id")}),
)
def page(
    caller: Viewer,
    context: Context,
    state: StudyState | None = None,
    updated_since: Instant | None = None,
    cursor: Cursor | None = None,
    limit: Limit = 100,
) -> JSONResponse:
    """Studies of the key's project, newest first, without their specifications."""
    with context.uow(read_only=True) as store:
        found = store.studies.page(
            caller.project_id, state=state, updated_since=updated_since, cursor=cursor, limit=limit
        )
    return JSONResponse({"items": [study_summary(s) for s in found.items], "next_cursor": found.next_cursor})


@router.get("/{study}", **says("read_study", answers.StudyInFull))
def read(study: StudyKey, caller: Viewer, context: Context) -> JSONResponse:
    """One study, by id or by name."""
    with context.uow(read_only=True) as store:
        return JSONResponse(full_view(store.studies.find(caller.project_id, study), store=store))


@router.patch("/{study}", **says("edit_study", answers.StudyInFull))
def edit(study: StudyKey, changes: dict[str, Any], caller: Editor, context: Context) -> JSONResponse:
    """Widen ranges, change budgets, policies, surrogate or metadata; anything else needs a branch."""
    refuse_push_without_broker(changes.get("push"), context=context)
    edited = retried(lambda: edit_study(study, changes, project_id=caller.project_id, uow=context.uow))
    with context.uow(read_only=True) as store:
        return JSONResponse(full_view(edited, store=store))


@router.post(
    "/{study}/branch",
    **says(
        "branch_study",
        answers.Branch,
        status=201,
        is_once=True,
        leads_to={"read": leads("read_study", study="/study/id")},
    ),
)
def branch(study: StudyKey, body: BranchIn, request: Request, caller: Editor, context: Context) -> Response:
    """A new study from this one's specification with some fields replaced, and the trials still valid in it."""
    refuse_push_without_broker(body.changes.get("push"), context=context, path="changes.push")

    def act(uow: Any) -> tuple[int, dict[str, Any]]:
        report = branch_study(study, body.name, body.changes, project_id=caller.project_id, uow=uow)
        return 201, {
            "study": study_view(report.study, n_prepared=0),
            "copied": report.n_copied,
            "left_out": report.n_left_out,
            "left_out_reasons": [{"number": number, "reason": reason} for number, reason in report.left_out],
        }

    return once(request, body, act, caller=caller, context=context)


def _move(
    study: str,
    state: StudyState,
    body: ReasonIn | None,
    *,
    request: Request,
    caller: Caller,
    context: ApiContext,
) -> Response:
    reason = body.reason if body else None

    def act(uow: Any) -> tuple[int, dict[str, Any]]:
        moved = change_state(study, state, reason=reason, project_id=caller.project_id, uow=uow)
        return 200, study_view(moved)

    return once(request, body or ReasonIn(), act, caller=caller, context=context)


@router.post("/{study}/pause", **says("pause_study", answers.Study, is_once=True, leads_to=AGAIN))
def pause(
    study: StudyKey, request: Request, caller: Editor, context: Context, body: ReasonIn | None = None
) -> Response:
    """Give out no more trials; running ones go on."""
    return _move(study, StudyState.PAUSED, body, request=request, caller=caller, context=context)


@router.post("/{study}/resume", **says("resume_study", answers.Study, is_once=True, leads_to=AGAIN))
def resume(
    study: StudyKey, request: Request, caller: Editor, context: Context, body: ReasonIn | None = None
) -> Response:
    """Give out trials again; also closes the breaker."""
    return _move(study, StudyState.ACTIVE, body, request=request, caller=caller, context=context)


@router.post("/{study}/stop", **says("stop_study", answers.Study, is_once=True, leads_to=AGAIN))
def stop(
    study: StudyKey, request: Request, caller: Editor, context: Context, body: ReasonIn | None = None
) -> Response:
    """End the search; running trials are told to stop, results are still taken."""
    return _move(study, StudyState.STOPPED, body, request=request, caller=caller, context=context)


@router.post("/{study}/archive", **says("archive_study", answers.Study, is_once=True))
def archive(
    study: StudyKey, request: Request, caller: Editor, context: Context, body: ReasonIn | None = None
) -> Response:
    """Close the study for good; it can still be read."""
    return _move(study, StudyState.ARCHIVED, body, request=request, caller=caller, context=context)


@router.get("/{study}/best", **says("read_best", answers.Best))
def best(study: StudyKey, caller: Viewer, context: Context) -> JSONResponse:
    """The best feasible trial of a study with one objective, or why there is none."""
    with context.uow(read_only=True) as store:
        found = store.studies.find(caller.project_id, study)
        trial = store.trials.get(found.best_trial_id) if found.best_trial_id else None
    reason = None
    if trial is None:
        reason = "no completed trial meets the constraints yet"
        if len(found.spec.objectives) > 1:
            reason = "several_objectives: see /pareto"
        elif found.n(TrialState.COMPLETED) == 0:
            reason = "no trial is completed yet"
    return JSONResponse({"trial": trial_view(trial) if trial else None, "reason": reason})


@router.get("/{study}/pareto", **says("read_front", answers.Pareto))
def pareto(study: StudyKey, caller: Viewer, context: Context) -> JSONResponse:
    """The feasible trials that no other dominates."""
    with context.uow(read_only=True) as store:
        found = store.studies.find(caller.project_id, study)
        front = store.trials.front(found.id)
    return JSONResponse(
        {
            "items": [trial_view(trial) for trial in front],
            "objectives": [metric.model_dump(mode="json") for metric in found.spec.objectives],
        }
    )


@router.get("/{study}/fits", **says("list_fits", answers.FitPage))
def fits(study: StudyKey, caller: Viewer, context: Context, limit: Limit = 20) -> JSONResponse:
    """The latest fits, newest first."""
    with context.uow(read_only=True) as store:
        found = store.studies.find(caller.project_id, study)
        items = store.records.fits(found.id, limit=limit)
    return JSONResponse({"items": [fit_view(fit) for fit in items]})


@router.get("/{study}/export", **says("export_trials", None, media=EXPORTS))
def export(
    study: StudyKey,
    caller: Viewer,
    context: Context,
    format: Literal["csv", "jsonl"] = "jsonl",  # noqa: A002
) -> StreamingResponse:
    """Every closed trial by number, in a form that import reads."""
    with context.uow(read_only=True) as store:
        found = store.studies.find(caller.project_id, study)
    trials = _closed_trials(found, context)
    lines = to_csv(trials, found.spec) if format == "csv" else to_json_lines(trials)
    media_type = "text/csv" if format == "csv" else "application/x-ndjson"
    return StreamingResponse(
        _chunks(lines),
        media_type=media_type,
        headers={"Content-Disposition": f'attachment; filename="study-{found.id}.{format}"'},
    )


def _chunks(lines: Iterable[str]) -> Iterator[str]:
    """Many lines at once: each piece that is sent goes through a thread and the network by itself."""
    rest = iter(lines)
    while piece := "".join(islice(rest, EXPORT_CHUNK)):
        yield piece


def _closed_trials(study: Study, context: ApiContext) -> Iterator[Trial]:
    """Page by page, so that a slow reader holds no transaction open."""
    closed = [state for state in TrialState if not state.is_open]
    cursor: str | None = None
    while True:
        with context.uow(read_only=True) as store:
            found = store.trials.page(study.id, states=closed, cursor=cursor, limit=EXPORT_PAGE)
        yield from found.items
        cursor = found.next_cursor
        if cursor is None:
            return
