"""The audit log's entries: written in the transaction of the change they tell of, so neither is there alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from fastapi import Request

from bo_service.domain.ids import ProjectId
from bo_service.domain.records import AuditEntry
from bo_service.orchestrator.ports import Store, UnitOfWork

NAMED: Final = ("name", "scope", "project", "url")
"""Fields of a request's body that say what it is about."""

MAX_CHARACTERS: Final = 256


@dataclass(slots=True)
class Deed:
    """What a request is about to do, as far as is known."""

    project_id: ProjectId
    key_id: str | None
    key_name: str
    action: str
    request_id: str
    address: str
    subject: dict[str, str] = field(default_factory=dict)

    def is_about(self, fields: Mapping[str, Any]) -> None:
        """Note what stands in the route or the body."""
        self.subject |= {
            name: str(value)[:MAX_CHARACTERS] for name, value in fields.items() if value is not None
        }


def deed_of(request: Request) -> Deed | None:
    """The deed of a request that changes something and is not part of the loop."""
    found: Deed | None = getattr(request.state, "deed", None)
    return found


@dataclass(frozen=True, slots=True)
class AuditedUnitOfWork:
    """See ports.UnitOfWork; the first commit writes the entry."""

    inner: UnitOfWork
    deed: Deed

    @contextmanager
    def __call__(self, *, read_only: bool = False) -> Iterator[Any]:
        with self.inner(read_only=read_only) as store:
            yield store if read_only else _AuditedStore(store, self.deed)


class _AuditedStore:
    """A store that adds the entry before it commits."""

    def __init__(self, store: Store, deed: Deed) -> None:
        self._store = store
        self._deed = deed
        self._is_written = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self) -> None:
        if not self._is_written:
            self._is_written = True
            self._store.records.add_audit(entry_of(self._deed, self._store))
        self._store.commit()


def entry_of(deed: Deed, store: Store) -> AuditEntry:
    """The deed as the log keeps it, at the transaction's time."""
    return AuditEntry(
        project_id=deed.project_id,
        key_id=deed.key_id,
        key_name=deed.key_name,
        action=deed.action,
        subject=dict(deed.subject),
        request_id=deed.request_id,
        address=deed.address,
        at=store.now(),
    )
