"""What generation may know of a study, loaded once and extended with new rows only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from bo_service.domain.ids import StudyId
from bo_service.domain.proposal import Evaluated, Parameters, StudyView
from bo_service.domain.study import Study
from bo_service.domain.suggestion import Suggestion, SuggestionSource
from bo_service.domain.trial import Trial, TrialState
from bo_service.orchestrator.ports import Store

MAX_STUDIES: Final = 32


@dataclass(frozen=True, slots=True)
class _Known:
    """The closed trials of one study up to a data version, by number."""

    version: int = -1
    trials: tuple[Trial, ...] = ()


@dataclass(slots=True)
class KnownTrials:
    """Closed trials of the studies worked on lately; closed trials never change, so only new ones are read."""

    _studies: OrderedDict[StudyId, _Known] = field(default_factory=OrderedDict)

    def up_to(self, version: int, study_id: StudyId, *, store: Store) -> tuple[Trial, ...]:
        """The closed trials this data version contains, by number."""
        known = self._studies.pop(study_id, _Known())
        if known.version > version:
            self._studies[study_id] = known
            return tuple(t for t in known.trials if (t.closed_version or 0) <= version)
        new = list(store.trials.known(study_id, after_version=known.version, up_to_version=version))
        trials = tuple(sorted([*known.trials, *new], key=lambda t: t.number)) if new else known.trials
        self._studies[study_id] = _Known(version, trials)
        while len(self._studies) > MAX_STUDIES:
            self._studies.popitem(last=False)
        return trials


def load_view(
    study: Study,
    *,
    pending: tuple[Parameters, ...],
    n_prepared: int,
    needs_data: bool,
    known: KnownTrials,
    store: Store,
) -> StudyView:
    """The study at its present data version; without data where the generator looks at none."""
    trials = known.up_to(study.data_version, study.id, store=store) if needs_data else ()
    view = StudyView(
        spec=study.spec,
        seed=study.seed,
        data_version=study.data_version,
        pending=pending,
        n_started=study.n_trials + n_prepared,
        design_index=study.design_index,
    )
    return with_trials(view, trials)


def with_trials(view: StudyView, trials: tuple[Trial, ...]) -> StudyView:
    """The view with closed trials sorted by what they teach."""
    return replace(
        view,
        evaluated=tuple(
            Evaluated(number=t.number, parameters=t.parameters, measurements=t.measurements)
            for t in trials
            if t.state is TrialState.COMPLETED
        ),
        infeasible=tuple(t.parameters for t in trials if t.state is TrialState.INFEASIBLE),
        failed=tuple(
            t.parameters
            for t in trials
            if t.state in (TrialState.FAILED, TrialState.ABANDONED, TrialState.STOPPED)
        ),
    )


def lasting(prepared: list[Suggestion], *, study: Study, fixed_key: str) -> list[Suggestion]:
    """The prepared suggestions that stay when newer ones are written: these are pending.

    Those for other fixed values stay while they are fresh: a worker may still come for them.
    """
    oldest = study.data_version - study.staleness
    return [
        s
        for s in prepared
        if s.is_timeless
        or s.source is SuggestionSource.ENQUEUED
        or s.data_version >= (study.data_version if s.fixed_key == fixed_key else oldest)
    ]


def inputs_as_view(inputs: Mapping[str, Any], study: Study, trials: tuple[Trial, ...]) -> StudyView:
    """The view a stored fit was given, for its replay."""
    view = StudyView(
        spec=study.spec,
        seed=inputs["seed"],
        data_version=inputs["data_version"],
        pending=tuple(inputs["pending"]),
        n_started=inputs["n_started"],
        design_index=inputs["design_index"],
    )
    return with_trials(view, trials if inputs["needs_data"] else ())
