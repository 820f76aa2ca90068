"""The event stream of a study: server-sent events, resumed by the last id."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator
from typing import Annotated, Final

from fastapi import APIRouter, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from bo_service.api import answers
from bo_service.api.context import ApiContext, Context, Viewer, identify
from bo_service.api.documented import says
from bo_service.api.schemas import EventSeq, StudyKey
from bo_service.api.views import event_view
from bo_service.domain.errors import Invalid, RateLimited, Unauthorized
from bo_service.domain.ids import StudyId
from bo_service.domain.records import Event
from surrogates.errors import Problem

router = APIRouter(prefix="/v1", tags=["events"])

BATCH: Final = 500
POLL_SECONDS: Final = 0.5
SILENCE_SECONDS: Final = 15.0
"""A comment is sent after so long without events, so that a dead connection is noticed."""

MAX_STREAMS: Final = 100
"""Streams that one key may read from one HTTP process at the same time."""

_ID: Final = re.compile("[0-9]{1,15}")


@router.get(
    "/studies/{study}/events",
    **says("stream_events", None, media={"text/event-stream": answers.StreamedEvent}),
)
async def stream(
    study: StudyKey,
    request: Request,
    caller: Viewer,
    context: Context,
    after: EventSeq = 0,
    follow: bool = True,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Everything that happened after an id, then what happens next; `follow=false` ends with what is there."""
    if last_event_id is not None:
        # digits beyond ASCII and beyond what the database counts are no ids
        if not _ID.fullmatch(last_event_id):
            raise Invalid([Problem("Last-Event-ID", f"{last_event_id!r} is not an id of this stream")])
        after = int(last_event_id)

    def find() -> StudyId:
        with context.uow(read_only=True) as store:
            return store.studies.find(caller.project_id, study).id

    study_id = await run_in_threadpool(find)
    reader = caller.key_id or "keys are off"
    if context.streams[reader] >= MAX_STREAMS:
        raise RateLimited(
            f"this key reads {MAX_STREAMS} event streams of this process already",
            hint="end one, or give each reader a key of its own",
            wait=SILENCE_SECONDS,
        )
    return StreamingResponse(
        _counted(reader, _lines(study_id, after, request, context, follow=follow), context),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


def _read(study_id: StudyId, after: int, context: ApiContext) -> list[Event]:
    with context.uow(read_only=True) as store:
        return list(store.records.events(study_id, after=after, limit=BATCH))


async def _counted(reader: str, lines: AsyncIterator[str], context: ApiContext) -> AsyncIterator[str]:
    context.streams[reader] += 1
    try:
        async for line in lines:
            yield line
    finally:
        context.streams[reader] -= 1
        if not context.streams[reader]:
            del context.streams[reader]


async def _is_still_known(request: Request) -> bool:
    """Whether the reader's key still lets it in: a stream outlives many a key."""
    try:
        await identify(request)
    except (Unauthorized, RateLimited):
        return False
    return True


async def _lines(
    study_id: StudyId, after: int, request: Request, context: ApiContext, *, follow: bool
) -> AsyncIterator[str]:
    silent = 0.0
    identify_at = time.monotonic() + SILENCE_SECONDS
    yield ": connected\n\n"
    while not await request.is_disconnected():
        events = await run_in_threadpool(_read, study_id, after, context)
        if events:
            after = events[-1].seq
            # one piece a batch: each goes to the network by itself
            yield "".join(
                f"id: {event.seq}\nevent: {event.kind.value}\ndata: {json.dumps(event_view(event))}\n\n"
                for event in events
            )
        if len(events) == BATCH:
            continue
        if not follow or context.bell.is_closed:
            return
        if time.monotonic() >= identify_at:
            identify_at = time.monotonic() + SILENCE_SECONDS
            if not await _is_still_known(request):
                return
        silent = 0.0 if events else silent + POLL_SECONDS
        if silent >= SILENCE_SECONDS:
            silent = 0.0
            yield ": still here\n\n"
        await context.bell.wait(study_id, seconds=POLL_SECONDS)
