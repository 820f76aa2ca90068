"""API keys on SQLite and PostgreSQL: rotated and revoked, also at the same time."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from bo_service.domain.ids import new_id
from bo_service.domain.records import Scope
from bo_service.orchestrator import manage_keys
from bo_service.orchestrator.manage_keys import create_key, revoke_key, rotate_key

HOUR = timedelta(hours=1)


def test_a_key_revoked_while_it_is_rotated_stays_revoked(services, project, monkeypatch) -> None:
    key, _ = create_key("ci", Scope.WORKER, project="default", uow=services.uow)

    def revoke() -> None:
        revoke_key(key.id, project_id=project, uow=services.uow)

    other = threading.Thread(target=revoke)

    def revoked_meanwhile() -> str:
        # the rotation has read the key and not yet written it
        other.start()
        other.join(1)
        return new_id()

    monkeypatch.setattr(manage_keys, "new_id", revoked_meanwhile)
    rotate_key(key.id, grace=HOUR, project_id=project, uow=services.uow)
    other.join(30)
    with services.uow(read_only=True) as store:
        left = store.records.key(project, key.id)
        assert left.revoked_at is not None
        assert not left.is_valid(store.now())


@pytest.mark.parametrize("lifetime", [None, timedelta(days=30)])
def test_a_key_rotated_twice_within_its_grace_keeps_its_lifetime(services, project, lifetime) -> None:
    key, _ = create_key("ci", Scope.WORKER, project="default", lifetime=lifetime, uow=services.uow)
    for _ in range(2):
        new, _ = rotate_key(key.id, grace=HOUR, project_id=project, uow=services.uow)
        assert (None if new.expires_at is None else new.expires_at - new.created_at) == lifetime
    with services.uow(read_only=True) as store:
        now, old = store.now(), store.records.key(project, key.id)
    assert old.is_valid(now)
    assert not old.is_valid(now + HOUR)
    assert new.is_valid(now + HOUR)


def test_a_second_rotation_makes_no_grace_longer(services, project) -> None:
    key, _ = create_key("ci", Scope.WORKER, project="default", uow=services.uow)
    rotate_key(key.id, grace=HOUR, project_id=project, uow=services.uow)
    rotate_key(key.id, grace=24 * HOUR, project_id=project, uow=services.uow)
    with services.uow(read_only=True) as store:
        assert not store.records.key(project, key.id).is_valid(store.now() + HOUR)


def test_a_key_that_is_ending_can_be_revoked_at_once(services, project) -> None:
    key, _ = create_key("ci", Scope.WORKER, project="default", uow=services.uow)
    rotate_key(key.id, grace=HOUR, project_id=project, uow=services.uow)
    revoked = revoke_key(key.id, project_id=project, uow=services.uow)
    again = revoke_key(key.id, project_id=project, uow=services.uow)
    with services.uow(read_only=True) as store:
        assert not store.records.key(project, key.id).is_valid(store.now())
    assert again == revoked
