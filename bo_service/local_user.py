"""The key of the user who starts the service: kept for `bo` and the Python client, beside those of other services."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2

from bo_service.credentials import Credentials, address, read_credentials, write_credentials
from bo_service.domain.records import OPERATORS_PROJECT, Scope
from bo_service.orchestrator.manage_keys import create_key, hash_key
from bo_service.orchestrator.ports import UnitOfWork

ANSWER_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalKey:
    """The key of this service, and which service commands without BO_URL go to."""

    key: str
    current_url: str
    former_url: str | None
    """The service they went to before, where that is another one."""


def local_key(
    path: Path, url: str, *, uow: UnitOfWork, answers: Callable[[str], bool] | None = None
) -> LocalKey:
    """The local user's admin key: one of those in the file if this service knows it, else a new one.

    Commands without BO_URL go to this service from now on, unless the one they went to still answers: the user of
    that one should not be redirected by a second service.
    """
    with _locked(path):
        found = read_credentials(path)
        key = _known(found, url, uow=uow)
        if key is None:
            _, key = create_key("local user", Scope.ADMIN, project=OPERATORS_PROJECT, uow=uow)
        elsewhere = found.url if found.url and address(found.url) != address(url) else None
        is_current = elsewhere is None or not (answers or is_answering)(elsewhere)
        kept = found.with_key(url, key, is_current=is_current)
        write_credentials(kept, path)
    return LocalKey(key=key, current_url=kept.url or url, former_url=elsewhere)


def _known(found: Credentials, url: str, *, uow: UnitOfWork) -> str | None:
    """The first of the keys that is a valid admin key of this service."""
    with uow(read_only=True) as store:
        for key in found.candidates(url):
            known = store.records.key_by_hash(hash_key(key))
            is_admin = known is not None and (known.scope, known.project) == (Scope.ADMIN, OPERATORS_PROJECT)
            if known is not None and is_admin and known.is_valid(store.now()):
                return key
    return None


def is_answering(url: str) -> bool:
    """Whether a service answers there."""
    try:
        return httpx2.get(f"{url}/healthz", timeout=ANSWER_SECONDS).status_code == 200
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError):
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time reads the file and writes it again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
