"""A study is paused, resumed, stopped or archived."""

from __future__ import annotations

from dataclasses import replace

from bo_service.domain.errors import Conflict, StudyClosed
from bo_service.domain.ids import ProjectId
from bo_service.domain.records import Event, EventKind
from bo_service.domain.stopping import reason_to_stop
from bo_service.domain.study import Study, StudyState
from bo_service.orchestrator.bookkeeping import request_compute
from bo_service.orchestrator.notify import notify_stopped
from bo_service.orchestrator.ports import UnitOfWork


def change_state(
    study_key: str, state: StudyState, *, reason: str | None, project_id: ProjectId, uow: UnitOfWork
) -> Study:
    """Move the study; where it already is there, nothing changes.

    Raises: NotFound, StudyClosed (archived, or pausing a stopped one), Conflict (a rule would stop it again).
    """
    with uow() as store:
        study = store.studies.find(project_id, study_key, lock=True)
        if study.state is state:
            return study
        if state is StudyState.PAUSED and study.state is StudyState.STOPPED:
            raise StudyClosed(f"study {study.spec.name!r} is stopped", hint="resume it first")
        now = store.now()
        moved = study.moved_to(state, reason=reason, now=now)
        if state is StudyState.ACTIVE:
            if rule := reason_to_stop(moved, now=now):
                raise Conflict(
                    f"the study would stop again at once ({rule})",
                    hint="raise the budget first: PATCH /v1/studies/{study} with stopping",
                )
            moved = replace(moved, breaker_reason=None, breaker_opened_at=None)
        store.studies.save(moved)
        store.records.add_event(
            Event(
                study_id=study.id,
                kind=EventKind.STUDY_CHANGED,
                payload={"state": state.value, "reason": reason},
                at=now,
            )
        )
        if state is StudyState.STOPPED:
            notify_stopped(moved, has_failed=False, store=store, now=now)
        request_compute(moved, store=store, now=now)
        store.commit()
    return moved
