"""Routes for those who run the service: numbers for Prometheus and for people, and the audit log."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from bo_service.api import operation_answers as answers
from bo_service.api.context import Admin, Context, Operator
from bo_service.api.documented import says
from bo_service.api.metrics import exposition
from bo_service.api.schemas import Cursor, Limit
from bo_service.api.views import audit_view, census_view

METRICS_TYPE: Final = CONTENT_TYPE_LATEST.partition(";")[0]

router = APIRouter(tags=["operations"])


@router.get("/metrics", **says("read_metrics", None, media={METRICS_TYPE: "a line for each number"}))
def metrics(caller: Operator, context: Context) -> Response:
    """The whole service in Prometheus' text format, for any key of the operators' project."""
    del caller
    survey = context.survey
    text = exposition(survey.census(), survey.totals(), survey.connections())
    return Response(text, media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/status", **says("read_status", answers.Status))
def status(caller: Operator, context: Context) -> JSONResponse:
    """What runs, what waits, what troubles it: the whole service at this moment."""
    del caller
    survey = context.survey
    return JSONResponse(census_view(survey.census(), survey.totals(), survey.connections()))


@router.get("/v1/audit", **says("list_audit", answers.AuditPage))
def audit(
    caller: Admin,
    context: Context,
    cursor: Cursor | None = None,
    limit: Limit = 100,
) -> JSONResponse:
    """Who changed what in the caller's project, newest first; what workers do is told by the studies' events."""
    with context.uow(read_only=True) as store:
        found = store.records.audit(caller.project_id, cursor=cursor, limit=limit)
    return JSONResponse({"items": [audit_view(e) for e in found.items], "next_cursor": found.next_cursor})
