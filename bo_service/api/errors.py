"""One table from errors to statuses; every error body is an RFC 9457 problem document."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from bo_service.domain.errors import (
    Conflict,
    Forbidden,
    Invalid,
    MeaningChanged,
    NotFound,
    PayloadTooLarge,
    RateLimited,
    ServiceError,
    Unauthorized,
    Unavailable,
)
from bo_service.domain.validation import problems_from
from surrogates.errors import Problem

STATUSES: Final[dict[type[ServiceError], int]] = {
    Invalid: 422,
    NotFound: 404,
    Conflict: 409,
    Unauthorized: 401,
    Forbidden: 403,
    PayloadTooLarge: 413,
    RateLimited: 429,
    Unavailable: 503,
}

TITLES: Final = {
    400: "Bad request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "Payload too large",
    415: "Unsupported media type",
    422: "Invalid input",
    429: "Too many requests",
    500: "Internal error",
    503: "Unavailable",
}

HTTP_CODES: Final = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}

UNREADABLE: Final = Problem("body", "cannot be read as JSON", "send valid JSON in UTF-8, nested less deeply")

METHODS: Final = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")

logger = logging.getLogger(__name__)


def status_of(error: ServiceError) -> int:
    """The HTTP status of an error: that of its nearest ancestor in the table."""
    for kind in type(error).__mro__:
        if kind in STATUSES:
            return STATUSES[kind]
    return 500


class ProblemResponse(JSONResponse):
    """A problem document; it may repeat names from the request, and those may hold what UTF-8 cannot."""

    media_type = "application/problem+json"

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "replace")


def problem_response(
    status: int,
    code: str,
    detail: str,
    *,
    hint: str = "",
    problems: Sequence[Problem] = (),
    extras: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """A problem document."""
    body: dict[str, Any] = {
        "type": f"urn:bo-service:error:{code}",
        "title": TITLES.get(status, "Error"),
        "status": status,
        "code": code,
        "detail": detail,
    }
    if hint:
        body["hint"] = hint
    if problems:
        body["problems"] = [{"field": p.path, "reason": p.reason, "hint": p.hint or None} for p in problems]
    return ProblemResponse(body | (extras or {}), status_code=status, headers=headers)


def service_problem(error: ServiceError) -> JSONResponse:
    """The problem document of an error."""
    problems = error.problems if isinstance(error, Invalid | MeaningChanged) else ()
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorized) else None
    if isinstance(error, Unavailable):
        headers = {"Retry-After": "1"}
    if isinstance(error, RateLimited):
        headers = {"Retry-After": str(math.ceil(error.wait))}
    return problem_response(
        status_of(error),
        error.code,
        error.detail,
        hint=error.hint,
        problems=problems,
        extras=error.extras,
        headers=headers,
    )


def _methods_of(request: Request) -> list[str]:
    return [
        method
        for method in METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of the application a problem document."""

    @app.exception_handler(ServiceError)
    def on_service_error(_: Request, error: ServiceError) -> JSONResponse:
        return service_problem(error)

    @app.exception_handler(RequestValidationError)
    def on_bad_request(_: Request, error: RequestValidationError) -> JSONResponse:
        problems = problems_from(error.errors(), skip_first=True)
        detail = str(problems[0]) if problems else "invalid request"
        if len(problems) > 1:
            detail += f" and {len(problems) - 1} more"
        return problem_response(422, Invalid.code, detail, problems=problems)

    @app.exception_handler(HTTPException)
    def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:
            # FastAPI could not read the body: not UTF-8, nested without end, numbers of thousands of digits
            return problem_response(422, Invalid.code, str(UNREADABLE), problems=[UNREADABLE])
        code = HTTP_CODES.get(error.status_code, "http_error")
        headers = dict(error.headers or {})
        if error.status_code == 405:
            # Starlette names the methods of the first route with this path alone
            headers["Allow"] = ", ".join(_methods_of(request))
        return problem_response(error.status_code, code, str(error.detail), headers=headers)

    @app.exception_handler(Exception)
    def on_defect(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem_response(
            500, ServiceError.code, "the service failed on this request", hint="see the service's log"
        )
