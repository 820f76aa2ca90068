"""HTTP with retries: exponential backoff with jitter, one idempotency key for all tries of a call."""

from __future__ import annotations

import math
import os
import random
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2

from bo_service.client.errors import BadUrl, BoServiceError, Refused, SecretLost, Unreachable, refusal
from bo_service.credentials import Credentials, credentials_path, read_credentials
from bo_service.secret_files import secret

RETRIED_STATUSES: Final = frozenset((429, 502, 503, 504))
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 5.0
DEFAULT_URL: Final = "http://127.0.0.1:8000"


class Transport:
    """One connection pool to one service.

    `patience_seconds` is how long a call is retried while the service is away.
    Raises: BadUrl.
    """

    def __init__(
        self, url: str | None, key: str | None, *, timeout_seconds: float, patience_seconds: float
    ) -> None:
        kept = read_credentials()
        self.url = _checked_url(url or os.environ.get("BO_URL") or kept.url or DEFAULT_URL)
        given = key or os.environ.get("BO_API_KEY") or secret("bo_api_key")
        # a key of the file belongs to the service it was made for
        self.key = given or kept.key_for(self.url)
        self._about_the_key = _about_the_key(kept, self.url, is_given=bool(given))
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self._patience_seconds = patience_seconds
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout_seconds)

    def close(self) -> None:
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        content: bytes | None = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        extra_seconds: float = 0.0,
        is_repeatable: bool = False,
    ) -> httpx2.Response:
        """The answer to a request, retried while the service is away.

        A POST carries an Idempotency-Key, the same for all its tries, so that a lost answer does no harm; one
        that `is_repeatable` by nature needs none.
        Raises: Unreachable, Refused.
        """
        refuse_non_finite(body)
        sent = dict(headers or {})
        if method == "POST" and not is_repeatable:
            sent.setdefault("Idempotency-Key", str(uuid.uuid4()))
        timeout = httpx2.Timeout(self._http.timeout.read or 30.0)
        timeout = httpx2.Timeout((timeout.read or 30.0) + extra_seconds, connect=10.0)
        deadline = time.monotonic() + self._patience_seconds
        pause = FIRST_PAUSE_SECONDS
        while True:
            wait, error = pause, ""
            try:
                answer = self._http.request(
                    method, path, json=body, content=content, params=params, headers=sent, timeout=timeout
                )
            except httpx2.TransportError as failure:
                error = f"{type(failure).__name__}: {failure}"
            else:
                if answer.status_code not in RETRIED_STATUSES:
                    return _checked(answer, about_the_key=self._about_the_key)
                error = f"status {answer.status_code}"
                wait = max(pause, _retry_after(answer))
            wait *= random.uniform(0.5, 1.0)
            if time.monotonic() + wait > deadline:
                raise Unreachable(
                    f"{method} {self.url}{path}: {error}; is the service running? (`bo up`, `bo doctor`)"
                )
            time.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def json(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of an answer. Raises: Unreachable, Refused."""
        return self.call(method, path, **options).json()

    def secret_of(self, path: str, *, name: str, hint: str, body: Any = None) -> Mapping[str, Any]:
        """The JSON of a POST whose field `name` is shown once. Raises: Unreachable, Refused, SecretLost."""
        found: Mapping[str, Any] = self.json("POST", path, body=body)
        if found[name] is None:
            raise SecretLost(
                f"POST {self.url}{path}: the first answer got lost, and {name!r} is shown this once; "
                + hint.format(id=found["id"])
            )
        return found

    @contextmanager
    def lines(
        self, path: str, *, params: Mapping[str, Any], headers: Mapping[str, str]
    ) -> Iterator[Iterator[str]]:
        """The lines of a streamed answer. Raises: Refused, httpx2.TransportError while reading."""
        timeout = httpx2.Timeout(60.0, connect=10.0)
        with self._http.stream("GET", path, params=params, headers=headers, timeout=timeout) as answer:
            if answer.status_code >= 400:
                answer.read()
                _checked(answer, about_the_key=self._about_the_key)
            yield answer.iter_lines()


def _retry_after(answer: httpx2.Response) -> float:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdigit() else 0.0


def refuse_non_finite(body: Any) -> None:
    """JSON has no word for NaN and infinity. Raises: Refused, with the fields that hold one."""
    if not (found := list(_non_finite(body, ()))):
        return
    problems = [
        {"field": ".".join(path), "reason": f"{number} is not a finite number", "hint": None}
        for path, number in found
    ]
    raise refusal(
        422, {"code": "validation_failed", "detail": "numbers must be finite", "problems": problems}
    )


def _non_finite(body: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(body, float) and not math.isfinite(body):
        yield path, body
    elif isinstance(body, Mapping):
        for name, inner in body.items():
            yield from _non_finite(inner, (*path, str(name)))
    elif isinstance(body, list | tuple):
        for position, inner in enumerate(body):
            yield from _non_finite(inner, (*path, str(position)))


def _checked_url(text: str) -> str:
    """A service's URL. Raises: BadUrl where it is none."""
    url = text.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        raise BadUrl(
            f"{text!r} is not the URL of a service: write it like {DEFAULT_URL} (BO_URL, or the url given)"
        )
    return url


def _about_the_key(kept: Credentials, url: str, *, is_given: bool) -> str:
    """What a user should know whose key the service refuses: where it came from, or where none was found."""
    path = credentials_path()
    if is_given:
        return "the key that was sent is the one of BO_API_KEY, or the one given"
    if kept.key_for(url):
        return f"the key that was sent is kept for {url} in {path}; BO_API_KEY goes before it"
    found = f"{path} has keys of {', '.join(kept.keys)} alone" if kept.keys else f"{path} has no key"
    return f"set BO_API_KEY to a key of {url}; {found}"


def _checked(answer: httpx2.Response, *, about_the_key: str) -> httpx2.Response:
    if answer.status_code < 400:
        return answer
    try:
        problem = answer.json()
    except ValueError:
        problem = {"detail": answer.text[:500]}
    if not isinstance(problem, dict):
        raise BoServiceError(f"an answer that is no problem document: {answer.text[:200]}")
    if answer.status_code == 401:
        problem["hint"] = about_the_key
    error: Refused = refusal(answer.status_code, problem)
    raise error
