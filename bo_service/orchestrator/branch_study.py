"""A branch: a new study with a changed specification that starts from the trials still valid in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import ValidationError

from bo_service.domain.errors import Invalid
from bo_service.domain.ids import ProjectId, TrialId, new_id
from bo_service.domain.spec import StudySpec
from bo_service.domain.study import Study
from bo_service.domain.trial import Provenance, Trial, TrialSource, TrialState
from bo_service.domain.validation import problems_in
from bo_service.orchestrator.attach_trials import add_given
from bo_service.orchestrator.bookkeeping import request_compute
from bo_service.orchestrator.create_study import add_study, check_spec
from bo_service.orchestrator.ports import UnitOfWork
from surrogates.errors import InvalidConfiguration, Problem

COPIED_STATES: Final = (TrialState.COMPLETED, TrialState.INFEASIBLE, TrialState.FAILED)
MAX_REASONS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchReport:
    """The new study, and what of the old one it holds."""

    study: Study
    n_copied: int
    n_left_out: int
    left_out: Sequence[tuple[int, str]]
    """(trial number, why) of the first ones left out."""


def branch_study(
    study_key: str, name: str, changes: Mapping[str, Any], *, project_id: ProjectId, uow: UnitOfWork
) -> BranchReport:
    """Create a study from another's specification with top-level fields replaced, and copy what stays valid.

    Raises: NotFound, Invalid, NameTaken.
    """
    with uow() as store:
        parent = store.studies.find(project_id, study_key)
        wire = parent.spec.model_dump(mode="json") | dict(changes) | {"name": name}
        try:
            spec = StudySpec.model_validate(wire)
        except ValidationError as error:
            raise Invalid([problem.under("changes") for problem in problems_in(error)]) from error
        check_spec(spec)
        study = add_study(spec, project_id=project_id, parent=parent.id, store=store)
        copied: list[Trial] = []
        left_out: list[tuple[int, str]] = []
        for trial in store.trials.known(parent.id, up_to_version=parent.data_version):
            if trial.state not in COPIED_STATES:
                continue
            try:
                copied.append(_copy(trial, study))
            except Invalid as error:
                left_out.append((trial.number, error.detail))
        now = store.now()
        if copied:
            add_given(copied, study=study, store=store, now=now)
        else:
            request_compute(study, store=store, now=now)
        store.commit()
        study = store.studies.get(study.id)
    return BranchReport(
        study=study, n_copied=len(copied), n_left_out=len(left_out), left_out=left_out[:MAX_REASONS]
    )


def _copy(trial: Trial, study: Study) -> Trial:
    """The trial as a given one of the new study. Raises: Invalid where it is not valid there."""
    spec = study.spec
    try:
        parameters = spec.space.canonical(trial.parameters)
    except InvalidConfiguration as error:
        raise Invalid(error.problems) from error
    if trial.state is TrialState.COMPLETED:
        missing = [m.name for m in spec.required_metrics if m.name not in trial.measurements]
        if missing:
            raise Invalid([Problem(f"metrics.{name}", "was not reported") for name in missing])
    known = {metric.name for metric in spec.metrics}
    return replace(
        trial,
        id=TrialId(new_id()),
        study_id=study.id,
        parameters=parameters,
        source=TrialSource.BRANCHED,
        provenance=Provenance(generator="user"),
        suggestion_id=None,
        measurements={name: m for name, m in trial.measurements.items() if name in known},
        # what it cost was paid by the parent
        cost=None,
        metadata={**trial.metadata, "branched_from": trial.id},
        on_front=False,
        attempt=0,
        n_attempts=0,
        worker=None,
    )
