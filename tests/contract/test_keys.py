"""API keys on SQLite and PostgreSQL: rotated and revoked, also at the same time."""

from __future__ import annotations

import threading
from datetime import timedelta

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
