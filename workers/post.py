"""Posts one message of a webhook to exactly the addresses that were checked, within a time that nothing extends."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpcore2

import bo_service
from bo_service.domain.errors import Invalid
from bo_service.domain.target import Address, Target
from bo_service.domain.webhook import Answer
from bo_service.orchestrator.deliver import SEND_SECONDS
from bo_service.receivers import Receivers

CONNECT_SECONDS: Final = 5.0
MAX_ANSWER_BYTES: Final = 65_536
"""So much of an answer is read, and thrown away: only its status counts."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment after which nothing more is waited for."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    def left(self, *, at_most: float | None = None) -> float:
        """Seconds that may still be waited. Raises: httpcore2.ReadTimeout where there are none."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout("the time is over")
        return left if at_most is None else min(left, at_most)


class _TimedStream(httpcore2.NetworkStream):
    """A stream whose every wait ends at the deadline: a receiver that answers byte by byte gains nothing."""

    def __init__(self, inner: httpcore2.NetworkStream, deadline: Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.left(at_most=timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.left(at_most=timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        # the certificate must be the host's, though the connection went to an address
        inner = self._inner.start_tls(ssl_context, server_hostname, self._deadline.left(at_most=timeout))
        return _TimedStream(inner, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _PinnedBackend(httpcore2.NetworkBackend):
    """Connects to given addresses whatever host is asked for, so that no name is looked up a second time."""

    def __init__(self, addresses: Sequence[Address], deadline: Deadline) -> None:
        self._addresses = addresses
        self._deadline = deadline
        self._inner = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        del host
        failure: Exception = httpcore2.ConnectError("no address")
        for address in self._addresses:
            try:
                stream = self._inner.connect_tcp(
                    str(address),
                    port,
                    self._deadline.left(at_most=timeout),
                    local_address,
                    socket_options or (),
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
            else:
                return _TimedStream(stream, self._deadline)
        raise failure


@dataclass(frozen=True, slots=True)
class Poster:
    """Sends messages; follows no redirect, keeps no cookie, knows no proxy. See orchestrator.deliver.Send."""

    receivers: Receivers
    tls: ssl.SSLContext = field(default_factory=httpcore2.default_ssl_context)
    seconds: float = SEND_SECONDS

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        try:
            target, addresses = self.receivers.check(url)
        except Invalid as error:
            return Answer(error=error.detail)
        try:
            return Answer(status=self._post(target, addresses, headers, body))
        except httpcore2.TimeoutException:
            return Answer(error=f"no answer within {self.seconds:g} s")
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            return Answer(error=f"{type(error).__name__}: {error}")

    def _post(
        self, target: Target, addresses: Sequence[Address], headers: Mapping[str, str], body: bytes
    ) -> int:
        url = httpcore2.URL(
            scheme=target.scheme.encode(),
            host=target.host.encode(),
            port=target.port,
            target=target.path.encode(),
        )
        own = {
            "Host": target.host_header,
            "User-Agent": f"bo-service/{bo_service.__version__}",
            "Content-Type": "application/json",
            "Connection": "close",
        }
        sent: list[tuple[bytes | str, bytes | str]] = [*own.items(), *headers.items()]
        backend = _PinnedBackend(addresses, Deadline.after(self.seconds))
        timeout = {"connect": CONNECT_SECONDS}
        with (
            httpcore2.ConnectionPool(ssl_context=self.tls, network_backend=backend) as pool,
            pool.stream("POST", url, headers=sent, content=body, extensions={"timeout": timeout}) as answer,
        ):
            _drain(answer)
            return answer.status


def _drain(answer: httpcore2.Response) -> None:
    """Let a polite receiver finish what it says; a talkative one is cut off."""
    n_bytes = 0
    for part in answer.iter_stream():
        n_bytes += len(part)
        if n_bytes > MAX_ANSWER_BYTES:
            return
