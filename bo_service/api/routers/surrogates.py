"""Routes that describe the installed surrogates; nothing is loaded for it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import JSONResponse

from bo_service.api import answers
from bo_service.api.context import Viewer
from bo_service.api.documented import says
from bo_service.domain.errors import NotFound
from surrogates.errors import UnknownSurrogate
from surrogates.registry import describe, plugin, plugins

router = APIRouter(prefix="/v1/surrogates", tags=["surrogates"])


@router.get("", **says("list_surrogates", answers.SurrogatePage))
def page(caller: Viewer) -> JSONResponse:
    """Every installed surrogate with its abilities and the schema of its options."""
    del caller
    return JSONResponse({"items": [describe(found) for _, found in sorted(plugins().items())]})


@router.get("/{name}", **says("read_surrogate", answers.Surrogate))
def read(name: Annotated[str, Path(max_length=64)], caller: Viewer) -> JSONResponse:
    """One surrogate."""
    del caller
    try:
        return JSONResponse(describe(plugin(name)))
    except UnknownSurrogate as error:
        raise NotFound("surrogate", name) from error
