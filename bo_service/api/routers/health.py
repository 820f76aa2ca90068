"""Routes for load balancers and supervisors: does the process live, can it serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

import bo_service
from bo_service.api import answers
from bo_service.api.context import ApiContext, Context, Viewer
from bo_service.api.documented import says
from bo_service.api.operation_answers import Readiness
from bo_service.domain.errors import ServiceError
from bo_service.domain.job import Queue, Role, ServiceProcess

router = APIRouter(tags=["health"])


@router.get("/healthz", **says("is_alive", answers.Alive))
async def alive() -> JSONResponse:
    """The process answers."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz", **says("is_ready", Readiness, also={503: Readiness}))
def ready(context: Context) -> JSONResponse:
    """503 where this process cannot serve: no database, old tables, a dead compute child of its own.

    `degraded` with 200 where it can, and something beside it is missing, or a newer version has migrated the
    database: results are still taken, so no load balancer should turn the workers away.
    """
    database, has_tables = _database(context)
    checks = {"database": database}
    if context.compute is not None:
        child = context.compute
        checks["compute"] = {"ok": child.is_alive, "kind": "embedded", "restarts": child.n_restarts}
    elif has_tables:
        checks |= _beside(context.survey.processes())
    serves = has_tables and (context.compute is None or context.compute.is_alive)
    status = "ok" if all(check["ok"] for check in checks.values()) else "degraded"
    return JSONResponse({"status": status, "checks": checks}, status_code=200 if serves else 503)


def _database(context: ApiContext) -> tuple[dict[str, Any], bool]:
    """Its check, and whether it answers and has the tables this version needs, or those of a newer one."""
    known = context.survey.revisions
    try:
        revision = context.survey.revision()
    except (ServiceError, OSError, RuntimeError):
        return {"ok": False, "reason": "the database does not answer"}, False
    if revision == known[0]:
        return {"ok": True, "revision": revision}, True
    if revision is None or revision in known:
        reason = (
            f"tables at revision {revision or 'none'}, this version needs {known[0]}: run `bo db upgrade`"
        )
        return {"ok": False, "revision": revision, "reason": reason}, False
    # a migration adds only what older code does not miss: docs/deployment.md
    reason = (
        f"tables at revision {revision} of a newer version, this one knows {known[0]}: replace this process"
    )
    return {"ok": False, "revision": revision, "reason": reason}, True


def _beside(processes: Sequence[ServiceProcess]) -> dict[str, dict[str, Any]]:
    """Compute and the broker, by what their processes say of themselves; details are for `/v1/status`."""
    workers = [p for p in processes if p.role is Role.COMPUTE]
    served = sorted({queue.value for worker in workers for queue in worker.queues})
    compute: dict[str, Any] = {"ok": Queue.CPU.value in served, "kind": "external", "queues": served}
    if not compute["ok"]:
        compute["reason"] = "no compute worker serves the queue cpu"
    if any(worker.is_embedded for worker in workers):
        return {"compute": compute}
    relays = [p for p in processes if p.role is Role.RELAY]
    broker: dict[str, Any] = {"ok": any(relay.trouble is None for relay in relays), "relays": len(relays)}
    if not broker["ok"]:
        broker["reason"] = "no relay reaches the broker" if relays else "no relay is alive: jobs are not sent"
    return {"compute": compute, "broker": broker}


@router.get("/v1/info", **says("read_info", answers.Info))
async def info(caller: Viewer) -> JSONResponse:
    """The version, and who the key says you are."""
    return JSONResponse(
        {
            "version": bo_service.__version__,
            "project": caller.project,
            "scope": caller.scope.value,
            "key": caller.key_name,
        }
    )
