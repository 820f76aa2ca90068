"""Routes of trials: claim, heartbeat, report, close, attach, import, read."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from bo_service.api import answers
from bo_service.api.context import ApiContext, Caller, Context, Editor, Viewer, Worker, promptly
from bo_service.api.documented import from_path, leads, says
from bo_service.api.idempotency import once
from bo_service.api.metrics import CLAIMS, TELLS, WAITING
from bo_service.api.schemas import (
    AttachIn,
    ClaimIn,
    CompleteIn,
    Cursor,
    FailIn,
    InfeasibleIn,
    Instant,
    LeaseIn,
    Limit,
    ProgressIn,
    ReasonIn,
    StudyKey,
    TrialKey,
    TrialNumber,
    WorkerName,
    measurements,
)
from bo_service.api.tables import from_csv, from_json_lines, given_trial
from bo_service.api.views import (
    attempt_view,
    claimed_view,
    event_view,
    observation_view,
    time_view,
    trial_view,
)
from bo_service.domain.errors import Invalid
from bo_service.domain.ids import LeaseToken, PushId, StudyId
from bo_service.domain.records import EventKind
from bo_service.domain.trial import AttemptExit, Trial, TrialState
from bo_service.orchestrator.attach_trials import attach_trial, import_trials
from bo_service.orchestrator.claim_trials import ClaimReply, ClaimRequest, claim_trials
from bo_service.orchestrator.contention import retried
from bo_service.orchestrator.end_attempt import (
    abandon_trial,
    cancel_trial,
    fail_trial,
    mark_infeasible,
    release_trial,
)
from bo_service.orchestrator.find_trial import find_trial
from bo_service.orchestrator.ports import UnitOfWork
from bo_service.orchestrator.record_observation import Outcome, record_observation
from bo_service.orchestrator.record_progress import record_progress
from bo_service.orchestrator.renew_lease import HeartbeatReply, renew_lease
from surrogates.errors import Problem

router = APIRouter(prefix="/v1", tags=["trials"])

POLL_SECONDS: Final = 0.25
"""How often one of a study's waiting claims looks by itself; the bell is usually faster."""

LOOK_SECONDS: Final = 5.0
"""After so long without a bell each waiting claim looks for itself, since not all wait for the same."""

RETRY_AFTER_SECONDS: Final = 1.0

HELD: Final = "/trials/0/id"
LEASE: Final = {"lease": "$response.body#/trials/0/lease"}
TABLES: Final = {
    "text/csv": "a header and one line a trial; an empty cell is an absent value",
    "application/x-ndjson": "one JSON object a line, as attach takes it",
    "application/jsonl": "the same",
}


@router.post(
    "/studies/{study}/trials",
    **says(
        "claim_trials",
        answers.Claimed,
        also={202: answers.NothingYet},
        is_once=True,
        leads_to={
            "read": leads("read_trial", trial=HELD),
            "heartbeat": leads("renew_lease", body=LEASE, trial=HELD),
            "observe": leads("record_progress", body=LEASE, trial=HELD),
            "complete": leads("complete_trial", body=LEASE, trial=HELD),
            "fail": leads("fail_trial", body=LEASE | {"reason": "tried"}, trial=HELD),
            "infeasible": leads("mark_infeasible", body=LEASE, trial=HELD),
            "release": leads("release_trial", body=LEASE, trial=HELD),
            "abandon": leads("abandon_trial", trial=HELD),
            "cancel": leads("cancel_trial", trial=HELD),
        },
    ),
)
async def claim(
    study: StudyKey, body: ClaimIn, request: Request, caller: Worker, context: Context
) -> Response:
    """Lease trials: the worker's own, queued ones, the user's, fresh suggestions; waits up to `wait_seconds`.

    A coroutine, so that a thousand waiting workers hold no thread.
    """
    # a push is spent by its first look
    wait_seconds = body.wait_seconds if body.push is None else 0.0
    deadline = time.monotonic() + min(wait_seconds, context.max_wait_seconds)
    wanted = ClaimRequest(
        worker=body.worker,
        count=body.count,
        fixed=body.fixed,
        lease_seconds=body.lease_seconds,
        reclaim=body.reclaim,
        push=None if body.push is None else PushId(body.push),
    )

    latest: ClaimReply | None = None
    is_called = True

    def act(uow: UnitOfWork) -> tuple[int, dict[str, Any]]:
        nonlocal latest
        latest = claim_trials(study, wanted, project_id=caller.project_id, uow=uow)
        return _claim_view(latest)

    while True:
        answer = await promptly(
            lambda: once(request, body, act, caller=caller, context=context),
            context=context,
            turn=context.turns.of_study(caller.project_id, study),
        )
        if latest is not None:
            context.turns.remember_name(caller.project_id, study, latest.study_id)
        for given in latest.trials if latest is not None else ():
            context.turns.remember(given.id, given.study_id)
        left = deadline - time.monotonic()
        if answer.status_code != 202:
            CLAIMS.labels("given" if latest is not None and latest.trials else "none").inc()
            if not is_called and latest is not None and latest.trials:
                # a bell was missed: others that wait may get something, too
                context.bell.ring(latest.study_id)
            return answer
        answer.headers["Retry-After"] = str(int(RETRY_AFTER_SECONDS))
        if left <= 0 or context.bell.is_closed:
            CLAIMS.labels("waiting").inc()
            return answer
        assert latest is not None  # a repeated answer is never a 202
        with WAITING.track_inprogress():
            is_called = await _for_news(latest.study_id, deadline=deadline, context=context)
        # whoever hung up meanwhile must not be given a trial
        if await request.is_disconnected():
            CLAIMS.labels("waiting").inc()
            return answer


async def _for_news(study_id: StudyId, *, deadline: float, context: ApiContext) -> bool:
    """Wait until a claim should look again, at the latest when its time is over; True where the bell called it."""
    look_at = min(deadline, time.monotonic() + LOOK_SECONDS * random.uniform(0.5, 1.0))
    while (left := look_at - time.monotonic()) > 0 and not context.bell.is_closed:
        is_rung = await context.bell.wait(study_id, seconds=min(left, POLL_SECONDS))
        if is_rung or context.lookouts.is_due(study_id):
            return is_rung
    return False


def _claim_view(reply: ClaimReply) -> tuple[int, dict[str, Any]]:
    view: dict[str, Any] = {
        "trials": [claimed_view(trial) for trial in reply.trials],
        "reason": reply.reason,
        "limited_by": reply.limited_by,
        "study_state": reply.study_state.value,
    }
    if reply.trials or not reply.may_wait:
        return 200, view
    return 202, view | {"retry_after_seconds": RETRY_AFTER_SECONDS}


@router.get(
    "/studies/{study}/trials",
    **says("list_trials", answers.TrialPage, leads_to={"read": leads("read_trial", trial="/items/0/id")}),
)
def page(
    study: StudyKey,
    caller: Viewer,
    context: Context,
    state: Annotated[list[TrialState] | None, Query()] = None,
    worker: WorkerName | None = None,
    number: TrialNumber | None = None,
    updated_since: Instant | None = None,
    cursor: Cursor | None = None,
    limit: Limit = 100,
    order: Literal["number", "-number"] = "number",
) -> JSONResponse:
    """Trials by number, or by time of change where `updated_since` is given."""
    with context.uow(read_only=True) as store:
        found = store.trials.page(
            store.studies.find(caller.project_id, study).id,
            states=state or (),
            worker=worker,
            number=number,
            updated_since=updated_since,
            cursor=cursor,
            limit=limit,
            newest_first=order == "-number",
        )
    return JSONResponse({"items": [trial_view(t) for t in found.items], "next_cursor": found.next_cursor})


@router.post(
    "/studies/{study}/trials/attach",
    **says(
        "attach_trial",
        answers.Trial,
        status=201,
        is_once=True,
        leads_to={"read": leads("read_trial", trial="/id"), "best": from_path("read_best", study="study")},
    ),
)
def attach(study: StudyKey, body: AttachIn, request: Request, caller: Worker, context: Context) -> Response:
    """Record a trial that was evaluated elsewhere."""
    given = given_trial(body)
    return once(
        request,
        body,
        lambda uow: (201, trial_view(attach_trial(study, given, project_id=caller.project_id, uow=uow))),
        caller=caller,
        context=context,
    )


@router.post(
    "/studies/{study}/trials/import",
    **says("import_trials", answers.Imported, reads=TABLES, is_once=True),
)
async def import_many(
    study: StudyKey,
    request: Request,
    caller: Editor,
    context: Context,
    dry_run: bool = False,
    skip_bad_rows: bool = False,
) -> Response:
    """Record many finished trials from CSV or JSON lines, all or none unless bad rows may be skipped."""
    raw = await request.body()
    media_type = request.headers.get("content-type", "").partition(";")[0].strip()
    query = f"dry_run={dry_run}&skip_bad_rows={skip_bad_rows}"
    return await run_in_threadpool(
        _import, study, raw, media_type, query, request, caller, context, dry_run, skip_bad_rows
    )


def _import(
    study: str,
    raw: bytes,
    media_type: str,
    query: str,
    request: Request,
    caller: Caller,
    context: ApiContext,
    dry_run: bool,
    skip_bad_rows: bool,
) -> Response:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid([Problem("body", f"is not UTF-8 at byte {error.start}")]) from error
    if media_type == "text/csv":
        with context.uow(read_only=True) as store:
            rows = from_csv(text, store.studies.find(caller.project_id, study).spec)
    elif media_type in ("application/x-ndjson", "application/jsonl"):
        rows = from_json_lines(text)
    else:
        raise Invalid(
            [Problem("Content-Type", f"{media_type!r} is not read", "use text/csv or application/x-ndjson")]
        )

    def act(uow: UnitOfWork) -> tuple[int, dict[str, Any]]:
        report = import_trials(
            study, rows, dry_run=dry_run, skip_bad_rows=skip_bad_rows, project_id=caller.project_id, uow=uow
        )
        return 200, {
            "imported": report.n_imported,
            "refused": report.n_refused,
            "dry_run": dry_run,
            "problems": [
                {
                    "row": b.row,
                    "field": b.problem.path,
                    "reason": b.problem.reason,
                    "hint": b.problem.hint or None,
                }
                for b in report.problems
            ],
        }

    return once(request, {"query": query, "body": text}, act, caller=caller, context=context)


@router.get("/trials/{trial}", **says("read_trial", answers.TrialInFull))
def read(trial: TrialKey, caller: Viewer, context: Context) -> JSONResponse:
    """One trial with its attempts, observations and late results."""
    with context.uow(read_only=True) as store:
        found, study = find_trial(trial, project_id=caller.project_id, store=store, lock=False)
        events = store.records.events(study.id, after=0, limit=1000, trial_id=trial)
        view = trial_view(found) | {
            "attempts_log": [attempt_view(a) for a in store.trials.attempts(trial)],
            "observations": [observation_view(o) for o in store.trials.observations(trial)],
            "notes": [event_view(e) for e in events if e.kind is EventKind.LATE_RESULT],
        }
    return JSONResponse(view)


def _heartbeat_view(reply: HeartbeatReply) -> dict[str, Any]:
    return {
        "lease_expires_at": time_view(reply.lease_expires_at),
        "lease_seconds": reply.lease_seconds,
        "should_stop": reply.should_stop,
        "should_pause": reply.should_pause,
    }


@router.put("/trials/{trial}/heartbeat", **says("renew_lease", answers.Heartbeat))
async def heartbeat(trial: TrialKey, body: LeaseIn, caller: Worker, context: Context) -> JSONResponse:
    """Keep the lease, and learn whether to go on."""
    reply = await promptly(
        lambda: retried(
            lambda: renew_lease(trial, LeaseToken(body.lease), project_id=caller.project_id, uow=context.uow)
        ),
        context=context,
        turn=trial,
    )
    return JSONResponse(_heartbeat_view(reply))


@router.post("/trials/{trial}/observations", **says("record_progress", answers.Heartbeat, is_once=True))
async def progress(
    trial: TrialKey, body: ProgressIn, request: Request, caller: Worker, context: Context
) -> Response:
    """Intermediate values; also keeps the lease."""
    values = measurements(body.metrics)

    def act(uow: UnitOfWork) -> tuple[int, dict[str, Any]]:
        reply = record_progress(
            trial, body.step, values, lease=LeaseToken(body.lease), project_id=caller.project_id, uow=uow
        )
        return 200, _heartbeat_view(reply)

    return await promptly(
        lambda: once(request, body, act, caller=caller, context=context),
        context=context,
        turn=context.turns.study_of(trial),
    )


async def _close(
    trial: TrialKey,
    request: Request,
    body: Any,
    act: Callable[[UnitOfWork], Trial],
    *,
    caller: Caller,
    context: ApiContext,
) -> Response:
    """Answer with the trial as the step left it."""

    def closed(uow: UnitOfWork) -> tuple[int, dict[str, Any]]:
        trial = act(uow)
        TELLS.labels(trial.state.value).inc()
        return 200, trial_view(trial)

    return await promptly(
        lambda: once(request, body, closed, caller=caller, context=context),
        context=context,
        turn=context.turns.study_of(trial),
    )


@router.post("/trials/{trial}/complete", **says("complete_trial", answers.Trial, is_once=True))
async def complete(
    trial: TrialKey, body: CompleteIn, request: Request, caller: Worker, context: Context
) -> Response:
    """Close with a result; the next fit is queued in the same transaction."""
    outcome = Outcome(
        measurements=measurements(body.metrics),
        cost=body.cost,
        metadata=body.metadata,
        is_stopped_early=body.stopped_early,
    )
    lease = LeaseToken(body.lease)
    return await _close(
        trial,
        request,
        body,
        lambda uow: record_observation(trial, outcome, lease=lease, project_id=caller.project_id, uow=uow),
        caller=caller,
        context=context,
    )


@router.post("/trials/{trial}/fail", **says("fail_trial", answers.Trial, is_once=True))
async def fail(trial: TrialKey, body: FailIn, request: Request, caller: Worker, context: Context) -> Response:
    """End the attempt without a result: tried again where the policy says so, else FAILED."""
    how: Literal[AttemptExit.ERROR, AttemptExit.TIMEOUT] = (
        AttemptExit.TIMEOUT if body.exit == "timeout" else AttemptExit.ERROR
    )
    return await _close(
        trial,
        request,
        body,
        lambda uow: fail_trial(
            trial,
            body.reason,
            how=how,
            retry=body.retry,
            lease=LeaseToken(body.lease),
            project_id=caller.project_id,
            uow=uow,
        ),
        caller=caller,
        context=context,
    )


@router.post("/trials/{trial}/infeasible", **says("mark_infeasible", answers.Trial, is_once=True))
async def infeasible(
    trial: TrialKey, body: InfeasibleIn, request: Request, caller: Worker, context: Context
) -> Response:
    """Close as INFEASIBLE: this configuration cannot be evaluated."""
    lease = LeaseToken(body.lease)
    return await _close(
        trial,
        request,
        body,
        lambda uow: mark_infeasible(trial, body.reason, lease=lease, project_id=caller.project_id, uow=uow),
        caller=caller,
        context=context,
    )


@router.post("/trials/{trial}/release", **says("release_trial", answers.Trial, is_once=True))
async def release(
    trial: TrialKey, body: LeaseIn, request: Request, caller: Worker, context: Context
) -> Response:
    """Give the trial back unevaluated; the attempt does not count."""
    lease = LeaseToken(body.lease)
    return await _close(
        trial,
        request,
        body,
        lambda uow: release_trial(trial, lease=lease, project_id=caller.project_id, uow=uow),
        caller=caller,
        context=context,
    )


@router.post("/trials/{trial}/abandon", **says("abandon_trial", answers.Trial, is_once=True))
async def abandon(
    trial: TrialKey, request: Request, caller: Editor, context: Context, body: ReasonIn | None = None
) -> Response:
    """Close for good, whoever holds it."""
    given = body or ReasonIn()
    return await _close(
        trial,
        request,
        given,
        lambda uow: abandon_trial(trial, given.reason, project_id=caller.project_id, uow=uow),
        caller=caller,
        context=context,
    )


@router.post("/trials/{trial}/cancel", **says("cancel_trial", answers.Trial, is_once=True))
async def cancel(
    trial: TrialKey, request: Request, caller: Editor, context: Context, body: ReasonIn | None = None
) -> Response:
    """Ask a running trial to stop; close a waiting one."""
    given = body or ReasonIn()
    return await _close(
        trial,
        request,
        given,
        lambda uow: cancel_trial(trial, given.reason, project_id=caller.project_id, uow=uow),
        caller=caller,
        context=context,
    )
