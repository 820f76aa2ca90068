"""Around every request: its id, its line in the log, its place in the metrics, and the security headers."""

from __future__ import annotations

import logging
import re
import time
from typing import Final

from opentelemetry import trace
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bo_service.api.metrics import REQUEST_SECONDS, REQUESTS
from bo_service.domain.ids import new_id
from bo_service.outages import Seldom
from bo_service.telemetry import bind, bound_to

REQUEST_ID: Final = "x-request-id"
_GIVEN_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")

SLOW_SECONDS: Final = 1.0
"""A request that takes longer is worth a line, unless it was a claim that waited."""

UNMATCHED: Final = "unmatched"
"""The route of a request that belongs to none: a stranger's paths must not become labels."""

HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
DOCS_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; "
    "style-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; "
    "img-src 'self' data: https://fastapi.tiangolo.com; frame-ancestors 'none'"
)
"""FastAPI's page of the API takes its scripts from where its authors publish them."""

UNAVAILABLE_LINES: Final = Seldom()

logger = logging.getLogger("bo_service.requests")


class Front:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _GIVEN_ID.fullmatch(given) else new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        status = 500
        started = time.perf_counter()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, scope, request_id)
            await send(message)

        # FastAPI's own span is around this, where requests are traced
        trace.get_current_span().set_attribute("bo.request", request_id)
        with bound_to(request=request_id):
            try:
                await self._app(scope, receive, answer)
            finally:
                route = getattr(scope.get("route"), "path", UNMATCHED)
                bind(**scope.get("path_params", {}))
                _note(scope["method"], route, status, time.perf_counter() - started)


def _add_headers(message: Message, scope: Scope, request_id: str) -> None:
    headers = MutableHeaders(scope=message)
    headers[REQUEST_ID] = request_id
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    if scope["path"].startswith("/docs"):
        headers["content-security-policy"] = DOCS_POLICY
    if scope["scheme"] == "https":
        headers["strict-transport-security"] = "max-age=31536000"


def _note(method: str, route: str, status: int, seconds: float) -> None:
    REQUESTS.labels(method if route != UNMATCHED else "any", route, str(status)).inc()
    REQUEST_SECONDS.labels(method if route != UNMATCHED else "any", route).observe(seconds)
    level = logging.DEBUG
    if status >= 500:
        level = logging.ERROR
    elif status >= 400 or (seconds > SLOW_SECONDS and status != 202):
        level = logging.INFO
    n_kept_back: int | None = 0
    if status == 503:
        # an outage: every worker asks again and again
        level, n_kept_back = logging.WARNING, UNAVAILABLE_LINES.passes()
    if n_kept_back is not None and logger.isEnabledFor(level):
        more = f", and {n_kept_back} more since the last such line" if n_kept_back else ""
        details = {"method": method, "route": route, "status": status, "seconds": round(seconds, 4)}
        logger.log(level, "%s %s %d in %.3f s%s", method, route, status, seconds, more, extra=details)
