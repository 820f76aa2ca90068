"""A trial together with its study, seen from one project."""

from __future__ import annotations

from bo_service.domain.errors import NotFound
from bo_service.domain.ids import ProjectId, TrialId
from bo_service.domain.study import Study
from bo_service.domain.trial import Trial
from bo_service.orchestrator.ports import Store


def find_trial(trial_id: TrialId, *, project_id: ProjectId, store: Store, lock: bool) -> tuple[Trial, Study]:
    """The trial and its study; `lock` keeps out who would change either.

    Raises: NotFound, for a trial of another project too.
    """
    trial, study = store.trials.with_study(trial_id, lock=lock)
    if study.project_id != project_id:
        raise NotFound("trial", trial_id)
    return trial, study
