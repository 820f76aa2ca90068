"""What a request may send: not without a key, and not more than its route is for."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Final

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bo_service.api.context import identify
from bo_service.api.errors import problem_response, service_problem
from bo_service.domain.errors import PayloadTooLarge, Unauthorized

KEYED: Final = "/v1/"
"""Every path below needs a key."""

IMPORTS: Final = re.compile("/v1/studies/[^/]+/trials/import")
MAX_IMPORT_BYTES: Final = 64_000_000


class _BodyTooLarge(Exception):
    """More bytes came than are accepted."""


class BodyLimit:
    """Refuses request bodies over a size, by their header or, failing that, while they come in.

    Imports may be larger: their route knows its caller before it reads. The others are read and parsed first, so a
    body that comes without a key, where one is needed, is not read at all.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_import_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_import_bytes = max_import_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        has_body = b"transfer-encoding" in headers or declared != b"0"
        if has_body and scope["path"].startswith(KEYED) and b"authorization" not in headers:
            try:
                await identify(Request(scope))
            except Unauthorized as error:
                await service_problem(error)(scope, receive, send)
                return
        limit = self._max_import_bytes if IMPORTS.fullmatch(scope["path"]) else self._max_bytes
        if declared.isdigit() and int(declared) > limit:
            await self._refuse(scope, receive, send)
            return
        seen = 0
        has_answered = False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _BodyTooLarge
            return message

        async def watched(message: Message) -> None:
            nonlocal has_answered
            # what the application makes of the broken body is not the answer
            if seen <= limit:
                has_answered = True
                await send(message)

        with suppress(_BodyTooLarge):
            await self._app(scope, counted, watched)
        if seen > limit and not has_answered:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_import = IMPORTS.fullmatch(scope["path"]) is not None
        limit = self._max_import_bytes if is_import else self._max_bytes
        response = problem_response(
            413,
            PayloadTooLarge.code,
            f"the body is larger than {limit} bytes",
            hint="split the import, or raise BO_MAX_IMPORT_MEGABYTES"
            if is_import
            else "send less in one request, or raise BO_MAX_BODY_MEGABYTES",
        )
        await response(scope, receive, send)
