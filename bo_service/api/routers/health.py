"""Routes for those who watch the service itself."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

import bo_service
from bo_service.api.context import Context, Viewer
from bo_service.domain.errors import ServiceError

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def alive() -> JSONResponse:
    """The process answers."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz")
def ready(context: Context) -> JSONResponse:
    """The process can serve: its database answers, and its compute side lives."""
    compute = context.compute
    checks = {
        "database": _database_answers(context),
        "compute": {
            "alive": compute.is_alive if compute else None,
            "restarts": compute.n_restarts if compute else None,
        },
    }
    fine = bool(checks["database"]) and (compute is None or compute.is_alive)
    return JSONResponse({"status": "ok" if fine else "degraded", **checks}, status_code=200 if fine else 503)


def _database_answers(context: Context) -> bool:
    try:
        with context.uow(read_only=True) as store:
            store.now()
    except (ServiceError, OSError, RuntimeError):
        return False
    return True


@router.get("/v1/info")
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
