"""What a step down leaves behind can be read by the version that had the older tables."""

from __future__ import annotations

from sqlalchemy import text

from bo_service.bootstrap import build_services, downgrade_database, ensure_default_project, upgrade_database
from bo_service.settings import Settings
from bo_service.storage.tables import Json
from tests.steps import new_study

BEFORE_PUSHES = "0004"


def test_no_specification_keeps_the_field_of_pushes(empty_database: Settings, make_spec) -> None:
    """Older versions refuse fields they do not know, also one that is null."""
    upgrade_database(empty_database)
    services = build_services(empty_database)
    project = ensure_default_project(services.uow)
    push = {"objective": "package.module:train", "slots": 2}
    for policy in (None, push):
        spec = make_spec(push=policy, metadata={"push": "kept", "tokens": [1e23, 5e-324]})
        new_study(services, project, lambda spec=spec: spec)
    services.close()
    downgrade_database(empty_database, BEFORE_PUSHES)
    services = build_services(empty_database)
    with services.transactions(read_only=True) as (connection, _):
        found = connection.execute(text("SELECT spec FROM studies").columns(spec=Json)).scalars().all()
    services.close()
    assert len(found) == 2
    for spec in found:
        assert "push" not in spec
        assert repr(spec["metadata"]) == repr({"push": "kept", "tokens": [1e23, 5e-324]})
