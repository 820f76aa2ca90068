"""Webhooks through the client: `client.webhooks.create(...)`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bo_service.client.transport import Transport

Json = Mapping[str, Any]

HOW_TO_REPLACE: Final = "get another one: `bo webhook rotate {id}`"


@dataclass(frozen=True, slots=True)
class Webhooks:
    """Whom the service tells of studies; see docs/webhooks.md. Every method may raise Unreachable and Refused."""

    _http: Transport

    def create(
        self,
        url: str,
        *,
        kinds: Sequence[str] | None = None,
        study: str | None = None,
        format: str = "json",  # noqa: A002  the API's word
    ) -> Json:
        """Have a URL told of all kinds or these, of all studies or one; `secret` in the answer is shown this once."""
        body: dict[str, Any] = {"url": url, "study": study, "format": format}
        if kinds is not None:
            body["kinds"] = list(kinds)
        return self._http.secret_of("/v1/webhooks", name="secret", hint=HOW_TO_REPLACE, body=body)

    def list(self) -> list[Json]:
        """The project's webhooks, oldest first."""
        items: list[Json] = self._http.json("GET", "/v1/webhooks")["items"]
        return items

    def get(self, webhook: str) -> Json:
        """One webhook."""
        found: Json = self._http.json("GET", f"/v1/webhooks/{webhook}")
        return found

    def delete(self, webhook: str) -> Json:
        """Remove it and its deliveries."""
        found: Json = self._http.json("DELETE", f"/v1/webhooks/{webhook}")
        return found

    def rotate(self, webhook: str) -> Json:
        """A new secret; for a day messages carry signatures of both."""
        return self._http.secret_of(f"/v1/webhooks/{webhook}/rotate", name="secret", hint=HOW_TO_REPLACE)

    def enable(self, webhook: str) -> Json:
        """Let a disabled one hear again."""
        return self._post(f"/{webhook}/enable")

    def test(self, webhook: str) -> Json:
        """Send a ping; returns its delivery."""
        return self._post(f"/{webhook}/test")

    def retry(self, webhook: str, delivery: str) -> Json:
        """Send a message again now, under its old id."""
        return self._post(f"/{webhook}/deliveries/{delivery}/retry")

    def deliveries(self, webhook: str, *, state: str | None = None) -> Iterator[Json]:
        """The messages of the last days, newest first."""
        params: dict[str, Any] = {"state": state} if state else {}
        while True:
            page = self._http.json("GET", f"/v1/webhooks/{webhook}/deliveries", params=params)
            yield from page["items"]
            if page["next_cursor"] is None:
                return
            params["cursor"] = page["next_cursor"]

    def _post(self, path: str, body: Json | None = None) -> Json:
        found: Json = self._http.json("POST", f"/v1/webhooks{path}", body=body)
        return found
