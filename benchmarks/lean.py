"""An HTTP client that costs almost nothing: one asyncio connection a worker, answers cut at their length.

The service, its database and the load share two cores, so a generous client would be measured instead of them. It
speaks just enough HTTP/1.1 for this service: keep-alive, JSON both ways, Content-Length in every answer.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit


class Lean(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, url: str, key: str | None) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._head = (
            f"Host: {parts.netloc}\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        )
        self._transport: Any = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._buffer = b""

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of an answer. Raises: ConnectionError where the service hangs up."""
        status, content = await self.raw(method, path, b"" if body is None else json.dumps(body).encode())
        return status, json.loads(content) if content else None

    async def raw(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and bytes of an answer. Raises: ConnectionError where the service hangs up."""
        loop = asyncio.get_running_loop()
        if self._transport is None:
            await loop.create_connection(lambda: self, self._host, self._port)
        self._answer = loop.create_future()
        head = f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)
        return await self._answer

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._transport, self._buffer = None, b""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError(f"hung up: {error}"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or self._answer is None:
            return
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) >= end + 4 + length:
            content, self._buffer = self._buffer[end + 4 : end + 4 + length], b""
            if not self._answer.done():
                self._answer.set_result((int(head[9:12]), content))
