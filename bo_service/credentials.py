"""The local user's keys: one file, a key for each service, which no service takes away from another."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

FILE: Final = "credentials.json"
MAX_FORMER: Final = 50
"""Keys that another key of the same URL has followed, kept in case their database comes back."""

THIS_MACHINE: Final = ("localhost", "0.0.0.0", "127.0.0.1")  # noqa: S104  a name for it, nothing listens


def credentials_path() -> Path:
    """Where the keys are kept: in BO_HOME where that is set, else in the user's configuration."""
    home = os.environ.get("BO_HOME")
    return (Path(home) if home else Path.home() / ".config" / "bo-service") / FILE


def address(url: str) -> str:
    """A service's URL in the form in which keys are looked up: the names of this machine are one."""
    parts = urlsplit(url.strip())
    host = (parts.hostname or "").lower()
    if host not in THIS_MACHINE:
        return url.strip().rstrip("/")
    port = f":{parts.port}" if parts.port is not None else ""
    return f"{parts.scheme}://127.0.0.1{port}{parts.path}".rstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Keys by the URL of their service, and the URL that is meant where none is given."""

    url: str | None = None
    keys: dict[str, str] = field(default_factory=dict, repr=False)
    former: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """(URL, key) of keys whose URL has another one by now, newest first."""

    def key_for(self, url: str) -> str | None:
        """The key of this service."""
        by_address = {address(known): key for known, key in self.keys.items()}
        return by_address.get(address(url))

    def candidates(self, url: str) -> list[str]:
        """Every key there is, those of this URL first: a service may have moved to another port."""
        own = self.key_for(url)
        earlier = [key for known, key in self.former if address(known) == address(url)]
        others = [key for _, key in self.former]
        found = [*([own] if own else []), *earlier, *self.keys.values(), *others]
        return list(dict.fromkeys(found))

    def with_key(self, url: str, key: str, *, is_current: bool) -> Credentials:
        """These and one more; a key that this URL had before is kept among the former ones."""
        replaced = [
            (known, old) for known, old in self.keys.items() if address(known) == address(url) and old != key
        ]
        kept = {known: old for known, old in self.keys.items() if address(known) != address(url)}
        former = (*replaced, *(pair for pair in self.former if pair[1] != key and pair not in replaced))
        return replace(
            self,
            url=url if is_current or self.url is None else self.url,
            keys=kept | {url: key},
            former=former[:MAX_FORMER],
        )


def read_credentials(path: Path | None = None) -> Credentials:
    """What the file holds; nothing where there is none or it is damaged."""
    try:
        content = json.loads((path or credentials_path()).read_text())
    except (OSError, ValueError):
        return Credentials()
    if not isinstance(content, dict):
        return Credentials()
    url, key = content.get("url"), content.get("key")
    keys = _texts(content.get("keys"))
    if isinstance(url, str) and isinstance(key, str) and url not in keys:
        # how the file looked when it held one key
        keys[url] = key
    pairs = content.get("former")
    former = tuple(
        (pair[0], pair[1])
        for pair in (pairs if isinstance(pairs, list) else [])
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
    )
    return Credentials(url=url if isinstance(url, str) else None, keys=keys, former=former)


def _texts(content: Any) -> dict[str, str]:
    found = content if isinstance(content, dict) else {}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def write_credentials(found: Credentials, path: Path) -> None:
    """Replace the file whole or not at all; it is its owner's alone."""
    content = {
        "url": found.url,
        "key": found.key_for(found.url) if found.url else None,
        "keys": found.keys,
        "former": [list(pair) for pair in found.former],
    }
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
