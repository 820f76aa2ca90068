"""Trials that come with their result: attached one by one, or imported by the thousand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from bo_service.domain.dominance import front_after
from bo_service.domain.errors import Invalid
from bo_service.domain.ids import ProjectId, TrialId, new_id
from bo_service.domain.records import Event, EventKind
from bo_service.domain.spec import StudySpec
from bo_service.domain.study import Study
from bo_service.domain.trial import Provenance, Trial, TrialSource, TrialState
from bo_service.orchestrator.bookkeeping import looks_at_data, request_compute, stop_if_due, with_incumbent
from bo_service.orchestrator.notify import notify_best
from bo_service.orchestrator.ports import Store, UnitOfWork
from bo_service.orchestrator.record_observation import Outcome, finite, judge
from surrogates.errors import InvalidConfiguration, Problem

MAX_PROBLEMS_SHOWN: Final = 100
GIVEN_STATES: Final = (TrialState.COMPLETED, TrialState.FAILED, TrialState.INFEASIBLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenTrial:
    """A finished trial as somebody else recorded it."""

    parameters: Mapping[str, Any]
    outcome: Outcome
    state: TrialState = TrialState.COMPLETED
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RowProblem:
    """What is wrong with one row of an import; rows count from 1."""

    row: int
    problem: Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What an import did, or would do."""

    trials: Sequence[Trial] = ()
    n_imported: int = 0
    n_refused: int = 0
    problems: Sequence[RowProblem] = field(default_factory=tuple)


def attach_trial(study_key: str, given: GivenTrial, *, project_id: ProjectId, uow: UnitOfWork) -> Trial:
    """Record one finished trial. Raises: NotFound, Invalid, StudyClosed."""
    with uow() as store:
        study = store.studies.find(project_id, study_key, lock=True)
        study.require_open()
        now = store.now()
        trial = _judged(given, study.spec, study=study, source=TrialSource.ATTACHED, now=now)
        (added,) = add_given([trial], study=study, store=store, now=now)
        store.commit()
    return added


def import_trials(
    study_key: str,
    rows: Sequence[GivenTrial | Problem],
    *,
    dry_run: bool,
    skip_bad_rows: bool,
    project_id: ProjectId,
    uow: UnitOfWork,
) -> ImportReport:
    """Record many finished trials in one transaction, all or none unless bad rows may be skipped.

    A row that could not be read comes as its Problem. Raises: NotFound, Invalid, StudyClosed.
    """
    with uow(read_only=dry_run) as store:
        study = store.studies.find(project_id, study_key, lock=not dry_run)
        study.require_open()
        now = store.now()
        good: list[Trial] = []
        bad: list[RowProblem] = []
        n_refused = 0
        for number, row in enumerate(rows, start=1):
            if isinstance(row, Problem):
                n_refused += 1
                bad.append(RowProblem(number, row))
                continue
            try:
                good.append(_judged(row, study.spec, study=study, source=TrialSource.IMPORTED, now=now))
            except Invalid as error:
                n_refused += 1
                bad += [RowProblem(number, problem) for problem in error.problems]
        report = ImportReport(n_imported=len(good), n_refused=n_refused, problems=bad[:MAX_PROBLEMS_SHOWN])
        if bad and not skip_bad_rows and not dry_run:
            raise Invalid([b.problem.under(f"rows.{b.row}") for b in report.problems])
        if dry_run or not good:
            return report
        added = add_given(good, study=study, store=store, now=now)
        store.commit()
    return replace(report, trials=added)


def _judged(given: GivenTrial, spec: StudySpec, *, study: Study, source: TrialSource, now: datetime) -> Trial:
    """A closed trial without number and version yet. Raises: Invalid."""
    problems: list[Problem] = []
    parameters: dict[str, Any] = {}
    state, reason = given.state, given.reason
    try:
        parameters = spec.space.canonical(given.parameters)
    except InvalidConfiguration as error:
        problems += [problem.under("parameters") for problem in error.problems]
    if state not in GIVEN_STATES:
        allowed = ", ".join(s.value for s in GIVEN_STATES)
        problems.append(Problem("state", f"{state.value} is not a result", f"give one of {allowed}"))
    else:
        # a trial that ended otherwise owes no metric, but those it has must be sound
        outcome = replace(given.outcome, is_stopped_early=state is not TrialState.COMPLETED)
        try:
            judged, _, broken = judge(outcome, spec)
            if state is TrialState.COMPLETED:
                state, reason = judged, reason or broken
        except Invalid as error:
            problems += error.problems
    if problems:
        raise Invalid(problems)
    return Trial(
        id=TrialId(new_id()),
        study_id=study.id,
        number=0,
        state=state,
        parameters=parameters,
        source=source,
        provenance=Provenance(generator="user"),
        measurements=finite(given.outcome.measurements),
        cost=given.outcome.cost,
        reason=reason,
        metadata=given.outcome.metadata,
        created_at=now,
        updated_at=now,
        closed_at=now,
    )


def add_given(trials: Sequence[Trial], *, study: Study, store: Store, now: datetime) -> list[Trial]:
    """Number the trials, let them compete for the front, and save them with the study; one data version for all.

    `study` is locked by the caller.
    """
    version = study.data_version + 1
    front = list(store.trials.front(study.id))
    before = {member.id: member for member in front}
    numbered: dict[TrialId, Trial] = {}
    for trial in trials:
        placed = replace(trial, number=study.next_number, closed_version=version)
        study = replace(
            study.tallied(None, placed.state),
            next_number=study.next_number + 1,
            n_given=study.n_given + 1,
            cost=study.cost + (placed.cost or 0.0),
        )
        joins, thrown = front_after(placed, front, study.spec)
        if joins:
            gone = {member.id for member in thrown}
            front = [member for member in front if member.id not in gone] + [placed]
            study = with_incumbent(placed, replace(study, last_improvement=study.n_closed))
        numbered[placed.id] = placed
    kept = {member.id for member in front}
    for member in before.values():
        if member.id not in kept:
            store.trials.save(replace(member, on_front=False))
    added = [replace(trial, on_front=trial.id in kept) for trial in numbered.values()]
    store.trials.add(added)
    store.trials.observe_final(added, now)
    _finish(added, replace(study, data_version=version, updated_at=now), store=store, now=now)
    return added


def _finish(added: Sequence[Trial], study: Study, *, store: Store, now: datetime) -> None:
    best = [trial for trial in added if trial.on_front]
    if best and best[-1].source is not TrialSource.BRANCHED:
        # one for the whole import; what a branch starts with is news to nobody
        notify_best(best[-1], study, store=store, now=now)
    study = stop_if_due(study, store=store, now=now)
    store.studies.save(study)
    store.records.add_event(
        Event(
            study_id=study.id,
            trial_id=added[0].id if len(added) == 1 else None,
            kind=EventKind.TRIALS_IMPORTED,
            payload={"n": len(added), "first_number": added[0].number, "source": added[0].source.value},
            at=now,
        )
    )
    if looks_at_data(study) and study.n_trials >= study.spec.n_initial:
        # given trials count toward the initial design: what is left of it gives way to the model
        store.suggestions.supersede(
            study.id, before_version=study.data_version, fixed_key="", including_timeless=True
        )
    request_compute(study, store=store, now=now)
