"""Studies in SQL."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from bo_service.domain.errors import NameTaken, NotFound
from bo_service.domain.ids import ProjectId, StudyId
from bo_service.domain.records import Page
from bo_service.domain.study import Study, StudyState
from bo_service.storage.cursors import Cursors
from bo_service.storage.rows import Row, known_spec, parsed_spec, study_from, study_values
from bo_service.storage.tables import StudyRow, table_of

STUDIES = table_of(StudyRow)

# statements of the hot paths are built once: building one costs more than SQLite takes to run it
_WITHOUT_SPEC = [column for column in STUDIES.c if column.name != "spec"]
"""A locked study's specification is nearly always known by its version, and costs as much as all the rest."""

_IS_ID = STUDIES.c.id == bindparam("key")
_BY_ID = select(STUDIES).where(_IS_ID)
_BY_ID_LOCKED = select(*_WITHOUT_SPEC).where(_IS_ID).with_for_update()
_IN_PROJECT = STUDIES.c.project_id == bindparam("project")
_IS_NAME = STUDIES.c.name == bindparam("key")
_FIND = {True: _BY_ID.where(_IN_PROJECT), False: select(STUDIES).where(_IN_PROJECT, _IS_NAME)}
_FIND_LOCKED = {
    True: _BY_ID_LOCKED.where(_IN_PROJECT),
    False: select(*_WITHOUT_SPEC).where(_IN_PROJECT, _IS_NAME).with_for_update(),
}
_SPEC = select(STUDIES.c.spec).where(_IS_ID)
_UPDATE = update(STUDIES).where(STUDIES.c.id == bindparam("key"))


@dataclass(frozen=True, slots=True)
class SqlStudies:
    """See ports.Studies."""

    connection: Connection

    def add(self, study: Study) -> None:
        values = study_values(study) | {
            "id": study.id,
            "project_id": study.project_id,
            "name": study.spec.name,
            "spec": study.spec.model_dump(mode="json"),
            "is_pushed": study.spec.push is not None,
            "seed": study.seed,
            "spec_version": study.spec_version,
            "parent_study_id": study.parent_study_id,
            "created_at": study.created_at,
        }
        try:
            with self.connection.begin_nested():
                self.connection.execute(insert(STUDIES).values(values))
        except IntegrityError as error:
            raise NameTaken(
                f"a study named {study.spec.name!r} exists in this project",
                hint="choose another name, or go on with that study: its name is enough for `bo work` and `optimize`,"
                " and load_if_exists=True lets the Python client take it",
                field="name",
            ) from error

    def find(self, project_id: ProjectId, key: str, *, lock: bool = False) -> Study:
        query = (_FIND_LOCKED if lock else _FIND)[_is_uuid(key)]
        row = self.connection.execute(query, {"project": project_id, "key": key}).first()
        if row is None:
            raise NotFound("study", key)
        return locked_study(row, self.connection) if lock else study_from(row)

    def get(self, study_id: StudyId, *, lock: bool = False) -> Study:
        row = self.connection.execute(_BY_ID_LOCKED if lock else _BY_ID, {"key": study_id}).first()
        if row is None:
            raise NotFound("study", study_id)
        return locked_study(row, self.connection) if lock else study_from(row)

    def save(self, study: Study) -> None:
        self.connection.execute(_UPDATE, {"key": study.id, **study_values(study)})

    def save_spec(self, study: Study) -> None:
        values = study_values(study) | {
            "spec": study.spec.model_dump(mode="json"),
            "is_pushed": study.spec.push is not None,
            "spec_version": study.spec_version,
        }
        self.connection.execute(_UPDATE, {"key": study.id, **values})

    def page(
        self,
        project_id: ProjectId,
        *,
        state: StudyState | None,
        updated_since: datetime | None,
        cursor: str | None,
        limit: int,
    ) -> Page[Study]:
        cursors = Cursors("studies", project_id)
        query = select(STUDIES).where(STUDIES.c.project_id == project_id)
        if state is not None:
            query = query.where(STUDIES.c.state == state.value)
        if updated_since is not None:
            query = query.where(STUDIES.c.updated_at >= updated_since)
        if cursor is not None:
            (last,) = cursors.read(cursor, str)
            query = query.where(STUDIES.c.id < last)
        rows = self.connection.execute(query.order_by(STUDIES.c.id.desc()).limit(limit + 1)).all()
        more = len(rows) > limit
        return Page(
            items=[study_from(row) for row in rows[:limit]],
            next_cursor=cursors.after(rows[limit - 1].id) if more else None,
        )


def locked_study(row: Row, connection: Connection) -> Study:
    """The study of a row without specification, which is read where this version of it is not known yet."""
    spec = known_spec(row.id, row.spec_version)
    if spec is None:
        stored = connection.execute(_SPEC, {"key": row.id}).scalar_one()
        spec = parsed_spec(row.id, row.spec_version, stored)
    return study_from(row, spec)


def _is_uuid(key: str) -> bool:
    try:
        return str(UUID(key)) == key.lower()
    except ValueError:
        return False
