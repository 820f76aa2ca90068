"""API keys: made, replaced, ended. Their text exists outside the service only."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import replace
from datetime import timedelta
from typing import Final

from bo_service.domain.errors import Conflict, Forbidden, Invalid
from bo_service.domain.ids import ProjectId, new_id
from bo_service.domain.records import ApiKey, Scope
from bo_service.orchestrator.ports import UnitOfWork
from surrogates.errors import Problem

KEY_TEXT: Final = re.compile(r"bo_[A-Za-z0-9_-]{43,200}")
"""What a key made elsewhere looks like: room for 256 random bits, so that a fast hash of it is safe."""


def hash_key(key: str) -> str:
    """What the database keeps of a key; keys are 256 random bits, so a fast hash is safe.

    A key is found by its hash: how long that takes tells nothing of the text, since nobody can choose a text by
    its hash.
    """
    return hashlib.sha256(key.encode()).hexdigest()


def create_key(
    name: str,
    scope: Scope,
    *,
    project: str,
    is_new_project: bool = False,
    lifetime: timedelta | None = None,
    uow: UnitOfWork,
) -> tuple[ApiKey, str]:
    """A new key bound to a project (created where missing); the text is shown this once.

    Raises: Forbidden where the project should be new and is not.
    """
    text = f"bo_{secrets.token_urlsafe(32)}"
    with uow() as store:
        now = store.now()
        make = store.records.add_project if is_new_project else store.records.ensure_project
        project_id = make(project, now=now)
        if project_id is None:
            raise Forbidden(
                f"project {project!r} has keys of its own", hint="ask an admin of that project for a key"
            )
        key = ApiKey(
            id=new_id(),
            project_id=project_id,
            project=project,
            name=name,
            scope=scope,
            key_hash=hash_key(text),
            prefix=text[:10],
            created_at=now,
            expires_at=None if lifetime is None else now + lifetime,
        )
        store.records.add_key(key)
        store.commit()
    return key, text


def keep_key(text: str, name: str, scope: Scope, *, project: str, uow: UnitOfWork) -> tuple[ApiKey, bool]:
    """Let a key made elsewhere be valid, and say whether it is new; called again, it changes nothing.

    Raises: Invalid where the text could be guessed, Conflict where the key has ended or is known for something else.
    """
    if not KEY_TEXT.fullmatch(text):
        raise Invalid(
            [Problem("key", "not bo_ and at least 43 random letters, digits, - or _", "make secrets")]
        )
    with uow() as store:
        now, key_hash = store.now(), hash_key(text)
        known = store.records.key_by_hash(key_hash)
        if known is None:
            made = ApiKey(
                id=new_id(),
                project_id=store.records.ensure_project(project, now=now),
                project=project,
                name=name,
                scope=scope,
                key_hash=key_hash,
                prefix=text[:10],
                created_at=now,
            )
            store.records.add_key(made)
            store.commit()
            return made, True
    if not known.is_valid(now):
        raise Conflict(f"the key {known.name!r} is revoked or has ended", hint="make another secret for it")
    if (known.scope, known.project) != (scope, project):
        raise Conflict(f"the key is known as a {known.scope.value} key of project {known.project}")
    return known, False


def rotate_key(
    key_id: str, *, grace: timedelta, project_id: ProjectId, uow: UnitOfWork
) -> tuple[ApiKey, str]:
    """A new key of the same name, scope and lifetime; the old one works for the grace, and no longer.

    Raises: NotFound, Conflict (the key is revoked or expired already).
    """
    text = f"bo_{secrets.token_urlsafe(32)}"
    with uow() as store:
        now = store.now()
        old = store.records.key(project_id, key_id, lock=True)
        if not old.is_valid(now):
            raise Conflict(f"key {old.name!r} has ended", hint="create a new one: POST /v1/keys")
        lifetime = None if old.expires_at is None else old.expires_at - old.created_at
        new = replace(
            old,
            id=new_id(),
            key_hash=hash_key(text),
            prefix=text[:10],
            created_at=now,
            expires_at=None if lifetime is None else now + lifetime,
            revoked_at=None,
        )
        store.records.add_key(new)
        end = now + grace
        # not its expiry, from which the lifetime of a further replacement follows
        store.records.revoke_key(old.id, at=min(old.revoked_at or end, end))
        store.commit()
    return new, text


def revoke_key(key_id: str, *, project_id: ProjectId, uow: UnitOfWork) -> ApiKey:
    """End a key now; one that has ended stays as it is. Raises: NotFound."""
    with uow() as store:
        key, now = store.records.key(project_id, key_id, lock=True), store.now()
        if key.revoked_at is None or now < key.revoked_at:
            key = replace(key, revoked_at=now)
            store.records.revoke_key(key.id, at=now)
            store.commit()
    return key
