"""Step 1: a submitter's specification becomes a study with its first suggestions on the way."""

from __future__ import annotations

import secrets

from bo_service.domain.errors import Invalid
from bo_service.domain.ids import ProjectId, StudyId, SuggestionId, new_id
from bo_service.domain.records import Event, EventKind
from bo_service.domain.spec import StudySpec
from bo_service.domain.spec_checks import problems_of
from bo_service.domain.study import Study
from bo_service.domain.suggestion import Suggestion, SuggestionSource
from bo_service.domain.trial import Provenance
from bo_service.orchestrator.bookkeeping import request_compute
from bo_service.orchestrator.ports import Store, UnitOfWork
from surrogates.errors import Problem, UnknownSurrogate
from surrogates.registry import check_options


def create_study(spec: StudySpec, *, project_id: ProjectId, uow: UnitOfWork) -> Study:
    """Store a checked study, enqueue the user's first points and ask for the initial design.

    Raises: Invalid, NameTaken.
    """
    check_spec(spec)
    with uow() as store:
        study = add_study(spec, project_id=project_id, parent=None, store=store)
        request_compute(study, store=store, now=study.created_at)
        store.commit()
    return study


def check_spec(spec: StudySpec) -> None:
    """Raises: Invalid with every contradiction found, an empty region and unknown surrogate options included."""
    problems = problems_of(spec)
    if not problems and spec.constraints:
        problems += _empty_region(spec)
    try:
        problems += [
            p.under("surrogate.options") for p in check_options(spec.surrogate.name, spec.surrogate.options)
        ]
    except UnknownSurrogate as error:
        problems.append(
            Problem(
                "surrogate.name", f"{error.name!r} is not installed", f"installed: {', '.join(error.known)}"
            )
        )
    if problems:
        raise Invalid(problems)


def _empty_region(spec: StudySpec) -> list[Problem]:
    # SciPy is slow to import and needed for nothing else in this process
    from surrogates.sampling import feasibility_problem  # noqa: PLC0415

    reason = feasibility_problem(spec.space)
    return [Problem("constraints", reason, "loosen a bound or widen a range")] if reason else []


def add_study(spec: StudySpec, *, project_id: ProjectId, parent: StudyId | None, store: Store) -> Study:
    """Insert the study with the user's first points enqueued."""
    now = store.now()
    study = Study(
        id=StudyId(new_id()),
        project_id=project_id,
        spec=spec,
        seed=spec.seed if spec.seed is not None else secrets.randbelow(2**31),
        parent_study_id=parent,
        created_at=now,
        updated_at=now,
    )
    store.studies.add(study)
    store.suggestions.add(
        [
            Suggestion(
                id=SuggestionId(new_id()),
                study_id=study.id,
                source=SuggestionSource.ENQUEUED,
                parameters=spec.space.canonical(point),
                provenance=Provenance(generator="user"),
                data_version=0,
                is_timeless=True,
                position=position,
                created_at=now,
            )
            for position, point in enumerate(spec.initial.points)
        ]
    )
    store.records.add_event(
        Event(study_id=study.id, kind=EventKind.STUDY_CREATED, payload={"name": spec.name}, at=now)
    )
    return study
