"""Suggestions in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, bindparam, func, insert, or_, select, update

from bo_service.domain.errors import NotFound
from bo_service.domain.ids import StudyId, SuggestionId
from bo_service.domain.study import Study
from bo_service.domain.suggestion import Suggestion, SuggestionSource, SuggestionState
from bo_service.storage.rows import suggestion_from, suggestion_values
from bo_service.storage.tables import SuggestionRow, table_of

SUGGESTIONS = table_of(SuggestionRow)
PREPARED = SuggestionState.PREPARED.value
ENQUEUED = SuggestionSource.ENQUEUED.value
GENERATED = SuggestionSource.GENERATED.value


def made_since(oldest: ColumnElement[Any]) -> ColumnElement[bool]:
    """`Suggestion.is_fresh` in SQL: timeless, or made from data of this version or a later one."""
    return or_(SUGGESTIONS.c.is_timeless, SUGGESTIONS.c.data_version >= oldest)


_FRESH = and_(SUGGESTIONS.c.source == GENERATED, made_since(bindparam("oldest")))

_PREPARED = and_(
    SUGGESTIONS.c.study_id == bindparam("study"),
    SUGGESTIONS.c.state == PREPARED,
    SUGGESTIONS.c.fixed_key == bindparam("fixed"),
)
_TAKE = (
    select(SUGGESTIONS)
    .where(_PREPARED, or_(SUGGESTIONS.c.source == ENQUEUED, _FRESH))
    # 'enqueued' sorts before 'generated'; ids sort by creation
    .order_by(SUGGESTIONS.c.source, SUGGESTIONS.c.id)
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
_N_FRESH = select(func.count()).where(_PREPARED, _FRESH)
_N_READY = select(func.count()).where(_PREPARED, or_(SUGGESTIONS.c.source == ENQUEUED, _FRESH))
_INSERT = insert(SUGGESTIONS)
_UPDATE = update(SUGGESTIONS).where(SUGGESTIONS.c.id == bindparam("key"))


def _wanted(study: Study, fixed_key: str) -> dict[str, Any]:
    return {"study": study.id, "fixed": fixed_key, "oldest": study.data_version - study.staleness}


@dataclass(frozen=True, slots=True)
class SqlSuggestions:
    """See ports.Suggestions."""

    connection: Connection
    changed: set[StudyId] = field(default_factory=set)
    """Studies about which somebody who waits should hear after the commit."""

    def add(self, suggestions: Sequence[Suggestion]) -> None:
        if suggestions:
            self.changed.update(s.study_id for s in suggestions)
            self.connection.execute(_INSERT, [suggestion_values(s) for s in suggestions])

    def get(self, suggestion_id: SuggestionId) -> Suggestion:
        row = self.connection.execute(select(SUGGESTIONS).where(SUGGESTIONS.c.id == suggestion_id)).first()
        if row is None:
            raise NotFound("suggestion", suggestion_id)
        return suggestion_from(row)

    def save(self, suggestions: Sequence[Suggestion]) -> None:
        for suggestion in suggestions:
            self.connection.execute(
                _UPDATE,
                {"key": suggestion.id, "state": suggestion.state.value, "trial_id": suggestion.trial_id},
            )

    def take(self, study: Study, *, fixed_key: str, limit: int) -> Sequence[Suggestion]:
        rows = self.connection.execute(_TAKE, {**_wanted(study, fixed_key), "at_most": limit})
        return [suggestion_from(row) for row in rows]

    def _all(self, query: Any) -> list[Suggestion]:
        return [suggestion_from(row) for row in self.connection.execute(query)]

    def n_fresh(self, study: Study, *, fixed_key: str = "") -> int:
        return int(self.connection.execute(_N_FRESH, _wanted(study, fixed_key)).scalar_one())

    def n_ready(self, study: Study) -> int:
        return int(self.connection.execute(_N_READY, _wanted(study, "")).scalar_one())

    def prepared(self, study_id: StudyId) -> Sequence[Suggestion]:
        return self._all(
            select(SUGGESTIONS)
            .where(SUGGESTIONS.c.study_id == study_id, SUGGESTIONS.c.state == PREPARED)
            .order_by(SUGGESTIONS.c.id)
        )

    def supersede(
        self,
        study_id: StudyId,
        *,
        before_version: int,
        fixed_key: str | None = None,
        including_timeless: bool = False,
    ) -> int:
        which = [
            SUGGESTIONS.c.study_id == study_id,
            SUGGESTIONS.c.state == PREPARED,
            SUGGESTIONS.c.source == GENERATED,
            SUGGESTIONS.c.data_version < before_version,
        ]
        if fixed_key is not None:
            which.append(SUGGESTIONS.c.fixed_key == fixed_key)
        if not including_timeless:
            which.append(SUGGESTIONS.c.is_timeless.is_(False))
        retired = update(SUGGESTIONS).where(*which).values(state=SuggestionState.SUPERSEDED.value)
        return int(self.connection.execute(retired).rowcount)

    def page(self, study_id: StudyId, *, state: SuggestionState | None, limit: int) -> Sequence[Suggestion]:
        query = select(SUGGESTIONS).where(SUGGESTIONS.c.study_id == study_id)
        if state is not None:
            query = query.where(SUGGESTIONS.c.state == state.value)
        return self._all(query.order_by(SUGGESTIONS.c.id.desc()).limit(limit))
