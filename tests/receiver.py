"""A receiver of webhooks for tests: notes what comes, answers as it is told."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.waiting import until


@dataclass
class Message:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes
    answered: int

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)

    def is_signed_by(self, secret: str) -> bool:
        """As the specification says, written independently of the service."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signed = f"{self.id}.{self.headers['webhook-timestamp']}.{self.body.decode()}"
        digest = base64.b64encode(hmac.new(key, signed.encode(), hashlib.sha256).digest()).decode()
        assert abs(time.time() - int(self.headers["webhook-timestamp"])) < 300
        return f"v1,{digest}" in self.headers["webhook-signature"].split(" ")


@dataclass
class Receiver:
    """Listens on a free port; `statuses` are given in turn, then 204."""

    host: str = "127.0.0.1"
    port: int = 0
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """Time before it answers."""
    messages: list[Message] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/hook"

    def wait(self, n: int, *, seconds: float = 30) -> list[Message]:
        """Until so many messages came."""
        self.until(lambda: len(self.messages) >= n, seconds=seconds)
        return self.messages

    def until(self, is_so: Callable[[], bool], *, seconds: float = 30) -> None:
        until(is_so, "what the receiver waits for", seconds=seconds)

    def of_kind(self, kind: str) -> list[Message]:
        return [message for message in self.messages if message.json.get("type") == kind]


@contextmanager
def listening(receiver: Receiver, *, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """The receiver at work."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            time.sleep(receiver.seconds)
            with receiver._lock:
                status = receiver.statuses.pop(0) if receiver.statuses else 204
                named = {name.lower(): value for name, value in self.headers.items()}
                receiver.messages.append(Message(self.path, named, body, status))
            self.send_response(status)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            # callers that hang up are part of the tests
            return

    server = Server((receiver.host, receiver.port), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
