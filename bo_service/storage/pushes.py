"""Pushes in SQL: what is announced to fleets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, bindparam, delete, insert, literal, select, text, update

from bo_service.domain.ids import PushId, StudyId, TrialId
from bo_service.domain.push import Push
from bo_service.storage.tables import PushRow, StudyRow, table_of

PUSHES, STUDIES = table_of(PushRow), table_of(StudyRow)

# the words of the partial index, so that both databases see that it fits
_STUDIES: Final = select(STUDIES.c.id).where(text("is_pushed AND state = 'ACTIVE'")).order_by(STUDIES.c.id)
_OF_STUDY: Final = select(PUSHES).where(PUSHES.c.study_id == bindparam("study")).order_by(PUSHES.c.id)
_IS_ANNOUNCED: Final = select(literal(1)).where(
    PUSHES.c.id == bindparam("push"),
    PUSHES.c.study_id == bindparam("study"),
    PUSHES.c.trial_id.is_(None),
)
_INSERT: Final = insert(PUSHES)
_TAKE: Final = update(PUSHES).where(PUSHES.c.id == bindparam("push"))
_FREE: Final = delete(PUSHES).where(
    PUSHES.c.study_id == bindparam("study"), PUSHES.c.trial_id == bindparam("trial")
)


@dataclass(frozen=True, slots=True)
class SqlPushes:
    """See ports.Pushes."""

    connection: Connection
    changed: set[StudyId] = field(default_factory=set)
    """Studies of which the relay should hear after the commit."""

    def studies(self) -> Sequence[StudyId]:
        return [StudyId(study_id) for study_id in self.connection.execute(_STUDIES).scalars()]

    def of_study(self, study_id: StudyId) -> Sequence[Push]:
        return [
            Push(
                id=PushId(row.id),
                study_id=StudyId(row.study_id),
                trial_id=TrialId(row.trial_id) if row.trial_id else None,
                created_at=row.created_at,
                sent_at=row.sent_at,
            )
            for row in self.connection.execute(_OF_STUDY, {"study": study_id})
        ]

    def add(self, pushes: Sequence[Push]) -> None:
        if pushes:
            self.connection.execute(
                _INSERT,
                [
                    {
                        "id": push.id,
                        "study_id": push.study_id,
                        "trial_id": push.trial_id,
                        "created_at": push.created_at,
                        "sent_at": push.sent_at,
                    }
                    for push in pushes
                ],
            )

    def mark_sent(self, push_ids: Sequence[PushId], *, now: datetime) -> None:
        if push_ids:
            self.connection.execute(update(PUSHES).where(PUSHES.c.id.in_(push_ids)).values(sent_at=now))

    def is_announced(self, push_id: PushId, study_id: StudyId) -> bool:
        return (
            self.connection.execute(_IS_ANNOUNCED, {"push": push_id, "study": study_id}).first() is not None
        )

    def take(self, push_id: PushId, trial_id: TrialId) -> None:
        self.connection.execute(_TAKE, {"push": push_id, "trial_id": trial_id})

    def spend(self, study_id: StudyId, push_ids: Sequence[PushId]) -> None:
        which = (PUSHES.c.study_id == study_id, PUSHES.c.id.in_(push_ids))
        self.connection.execute(delete(PUSHES).where(*which))

    def free(self, study_id: StudyId, trial_id: TrialId) -> None:
        self.connection.execute(_FREE, {"study": study_id, "trial": trial_id})
        self.changed.add(study_id)

    def withdraw(self, study_id: StudyId, *, including_taken: bool) -> None:
        which = [PUSHES.c.study_id == study_id]
        if not including_taken:
            which.append(PUSHES.c.trial_id.is_(None))
        self.connection.execute(delete(PUSHES).where(*which))
