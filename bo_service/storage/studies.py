"""Studies in SQL."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from bo_service.domain.errors import NameTaken, NotFound
from bo_service.domain.ids import ProjectId, StudyId
from bo_service.domain.records import Page
from bo_service.domain.study import Study, StudyState
from bo_service.storage.cursors import decode_cursor, encode_cursor
from bo_service.storage.rows import study_from, study_values
from bo_service.storage.tables import StudyRow, table_of

STUDIES = table_of(StudyRow)


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
                hint="choose another name",
                field="name",
            ) from error

    def find(self, project_id: ProjectId, key: str, *, lock: bool = False) -> Study:
        wanted = STUDIES.c.id == key if _is_uuid(key) else STUDIES.c.name == key
        query = select(STUDIES).where(STUDIES.c.project_id == project_id, wanted)
        row = self.connection.execute(query.with_for_update() if lock else query).first()
        if row is None:
            raise NotFound("study", key)
        return study_from(row)

    def get(self, study_id: StudyId, *, lock: bool = False) -> Study:
        query = select(STUDIES).where(STUDIES.c.id == study_id)
        row = self.connection.execute(query.with_for_update() if lock else query).first()
        if row is None:
            raise NotFound("study", study_id)
        return study_from(row)

    def save(self, study: Study) -> None:
        self.connection.execute(update(STUDIES).where(STUDIES.c.id == study.id).values(study_values(study)))

    def save_spec(self, study: Study) -> None:
        values = study_values(study) | {
            "spec": study.spec.model_dump(mode="json"),
            "spec_version": study.spec_version,
        }
        self.connection.execute(update(STUDIES).where(STUDIES.c.id == study.id).values(values))

    def page(
        self,
        project_id: ProjectId,
        *,
        state: StudyState | None,
        updated_since: datetime | None,
        cursor: str | None,
        limit: int,
    ) -> Page[Study]:
        query = select(STUDIES).where(STUDIES.c.project_id == project_id)
        if state is not None:
            query = query.where(STUDIES.c.state == state.value)
        if updated_since is not None:
            query = query.where(STUDIES.c.updated_at >= updated_since)
        if cursor is not None:
            (last,) = decode_cursor(cursor, str)
            query = query.where(STUDIES.c.id < last)
        rows = self.connection.execute(query.order_by(STUDIES.c.id.desc()).limit(limit + 1)).all()
        more = len(rows) > limit
        return Page(
            items=[study_from(row) for row in rows[:limit]],
            next_cursor=encode_cursor(rows[limit - 1].id) if more else None,
        )


def _is_uuid(key: str) -> bool:
    try:
        return str(UUID(key)) == key.lower()
    except ValueError:
        return False
