"""What must be true of the whole database whatever happened to the processes: `bo db check`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Select, and_, case, func, or_, select

from bo_service.domain.dominance import competes, dominates
from bo_service.domain.job import JobState
from bo_service.domain.stopping import reason_to_stop
from bo_service.domain.study import Study, StudyState
from bo_service.domain.suggestion import SuggestionState
from bo_service.domain.trial import Trial, TrialState
from bo_service.domain.webhook import DeliveryState
from bo_service.storage.rows import study_from, trial_from
from bo_service.storage.tables import (
    AttemptRow,
    DeliveryRow,
    JobRow,
    ObservationRow,
    PushRow,
    StudyRow,
    SuggestionRow,
    TrialRow,
    table_of,
)

STUDIES, TRIALS, ATTEMPTS = table_of(StudyRow), table_of(TrialRow), table_of(AttemptRow)
SUGGESTIONS, JOBS, OBSERVATIONS = table_of(SuggestionRow), table_of(JobRow), table_of(ObservationRow)
PUSHES, DELIVERIES = table_of(PushRow), table_of(DeliveryRow)

CLOSED: Final = tuple(state.value for state in TrialState if not state.is_open)
GRACE: Final = timedelta(seconds=60)
"""A lease that ended longer ago than this should have been reaped."""

RESENT_WITHIN: Final = timedelta(days=1)
"""The message of a push is sent again sooner than this, whatever the settings."""

SHOWN: Final = 20
"""So many violations of one rule are told; the rest say no more."""

Rule = Callable[[Connection, datetime], Iterator[str]]


def violations(connection: Connection, *, now: datetime, grace: timedelta = GRACE) -> list[str]:
    """Every rule the data break, in words; empty where all is well. Reads every table once or twice.

    With a grace below zero, what is under way now and not for longer than that counts as stuck, too.
    """
    found: list[str] = []
    for rule in RULES:
        for position, sentence in enumerate(rule(connection, now - grace)):
            if position == SHOWN:
                found.append(f"... and more of these ({rule.__name__.strip('_')})")
                break
            found.append(sentence)
    return found


def _numbers_are_dense(connection: Connection, _: datetime) -> Iterator[str]:
    query = (
        select(
            STUDIES.c.id,
            STUDIES.c.next_number,
            func.count(TRIALS.c.id).label("n"),
            func.count(TRIALS.c.number.distinct()).label("distinct"),
            func.min(TRIALS.c.number).label("first"),
            func.max(TRIALS.c.number).label("last"),
        )
        .join(TRIALS)
        .group_by(STUDIES.c.id, STUDIES.c.next_number)
    )
    for row in connection.execute(query):
        if (row.first, row.last, row.distinct) != (1, row.n, row.n) or row.next_number != row.n + 1:
            yield (
                f"study {row.id}: {row.n} trials numbered {row.first} to {row.last}"
                f" ({row.distinct} distinct), next {row.next_number}"
            )


def _counters_are_true(connection: Connection, _: datetime) -> Iterator[str]:
    counted: dict[str, dict[str, int]] = {}
    query = select(TRIALS.c.study_id, TRIALS.c.state, func.count().label("n")).group_by(
        TRIALS.c.study_id, TRIALS.c.state
    )
    for row in connection.execute(query):
        counted.setdefault(row.study_id, {})[row.state] = row.n
    for row in connection.execute(select(STUDIES.c.id, STUDIES.c.counts)):
        kept = {state: n for state, n in row.counts.items() if n}
        if kept != counted.get(row.id, {}):
            yield f"study {row.id}: counters say {kept}, its trials {counted.get(row.id, {})}"


def _versions_are_true(connection: Connection, _: datetime) -> Iterator[str]:
    query = (
        select(TRIALS.c.id, TRIALS.c.closed_version, STUDIES.c.data_version)
        .join(STUDIES)
        .where(
            or_(
                TRIALS.c.closed_version > STUDIES.c.data_version,
                and_(TRIALS.c.state.in_(CLOSED), TRIALS.c.closed_version.is_(None)),
            )
        )
    )
    for row in connection.execute(query):
        yield f"trial {row.id}: closed at data version {row.closed_version}, its study is at {row.data_version}"


def _bests_are_true(connection: Connection, _: datetime) -> Iterator[str]:
    for row in connection.execute(select(STUDIES)).all():
        study = study_from(row)
        of_study = select(TRIALS).where(
            TRIALS.c.study_id == study.id,
            or_(TRIALS.c.on_front, TRIALS.c.state == TrialState.COMPLETED.value),
        )
        front = [trial_from(found) for found in connection.execute(of_study.where(TRIALS.c.on_front))]
        yield from _wrong_incumbent(study, front)
        yield from _wrong_members(study, front)
        others = connection.execute(of_study.where(~TRIALS.c.on_front).execution_options(yield_per=1000))
        yield from _left_out(study, front, others)


def _wrong_incumbent(study: Study, front: list[Trial]) -> Iterator[str]:
    """Several objectives have no incumbent, a single one has the front's only member."""
    kept = (study.best_trial_id, study.best_value)
    if len(study.spec.objectives) > 1 or not front:
        wanted: list[tuple[str | None, float | None]] = [(None, None)]
    else:
        name = study.spec.objectives[0].name
        wanted = [(trial.id, trial.measurements[name].value) for trial in front if name in trial.measurements]
    if [kept] != wanted:
        yield f"study {study.id}: its best is trial {kept[0]} with {kept[1]}, by its trials {wanted}"


def _wrong_members(study: Study, front: list[Trial]) -> Iterator[str]:
    known = [(trial.id, competes(trial, study.spec)) for trial in front]
    for trial_id, mine in known:
        if mine is None:
            yield f"trial {trial_id}: among the best of study {study.id}, and may not be"
        elif any(theirs is not None and dominates(theirs, mine) for _, theirs in known):
            yield f"trial {trial_id}: among the best of study {study.id}, and another is better"


def _left_out(study: Study, front: list[Trial], others: Iterable[Any]) -> Iterator[str]:
    known = [found for trial in front if (found := competes(trial, study.spec)) is not None]
    for row in others:
        mine = competes(trial_from(row), study.spec)
        if mine is not None and not any(theirs == mine or dominates(theirs, mine) for theirs in known):
            yield f"trial {row.id}: better than the best of study {study.id}, and not among them"


def _results_are_recorded_once(connection: Connection, _: datetime) -> Iterator[str]:
    finals = (
        select(OBSERVATIONS.c.trial_id, func.count().label("n"))
        .where(OBSERVATIONS.c.step == -1)
        .group_by(OBSERVATIONS.c.trial_id)
        .subquery()
    )
    query: Select[Any] = (
        select(TRIALS.c.id, TRIALS.c.state, TRIALS.c.measurements, func.coalesce(finals.c.n, 0).label("n"))
        .outerjoin(finals, finals.c.trial_id == TRIALS.c.id)
        .where(or_(finals.c.n.is_not(None), TRIALS.c.state == TrialState.COMPLETED.value))
    )
    for row in connection.execute(query.execution_options(yield_per=1000)):
        if row.n != len(row.measurements) or row.state not in CLOSED:
            yield f"trial {row.id} ({row.state}): {len(row.measurements)} results, {row.n} final observations"


def _running_trials_have_one_attempt(connection: Connection, _: datetime) -> Iterator[str]:
    # a trial evaluated elsewhere has no attempt at all
    is_live = and_(ATTEMPTS.c.trial_id.is_not(None), ATTEMPTS.c.ended_at.is_(None))
    live = func.sum(case((is_live, 1), else_=0)).label("live")
    mine: ColumnElement[Any] = func.sum(
        case((and_(is_live, ATTEMPTS.c.lease == TRIALS.c.lease), 1), else_=0)
    ).label("mine")
    query = (
        select(TRIALS.c.id, TRIALS.c.state, func.coalesce(live, 0), func.coalesce(mine, 0))
        .outerjoin(ATTEMPTS, ATTEMPTS.c.trial_id == TRIALS.c.id)
        .group_by(TRIALS.c.id, TRIALS.c.state)
    )
    for trial_id, state, n_live, n_mine in connection.execute(query.execution_options(yield_per=1000)):
        wanted = 1 if state == TrialState.RUNNING.value else 0
        if (n_live, n_mine) != (wanted, wanted):
            yield f"trial {trial_id} ({state}): {n_live} attempts without an end, {n_mine} under its lease"


def _nothing_is_stuck(connection: Connection, limit: datetime) -> Iterator[str]:
    running = TRIALS.c.state == TrialState.RUNNING.value
    silent = or_(TRIALS.c.lease_expires_at.is_(None), TRIALS.c.lease_expires_at < limit)
    for row in connection.execute(select(TRIALS.c.id, TRIALS.c.lease_expires_at).where(running, silent)):
        yield f"trial {row.id}: RUNNING though its lease ended at {row.lease_expires_at}"
    running = JOBS.c.state == JobState.RUNNING.value
    silent = or_(JOBS.c.token.is_(None), JOBS.c.lease_expires_at.is_(None), JOBS.c.lease_expires_at < limit)
    for row in connection.execute(select(JOBS.c.id, JOBS.c.lease_expires_at).where(running, silent)):
        yield f"job {row.id}: RUNNING though its lease ended at {row.lease_expires_at}"
    waiting = and_(JOBS.c.state == JobState.QUEUED.value, JOBS.c.ready_at < limit)
    for row in connection.execute(select(JOBS.c.id, JOBS.c.ready_at).where(waiting)):
        yield f"job {row.id}: due since {row.ready_at}, and nobody takes it"


def _suggestions_become_one_trial(connection: Connection, _: datetime) -> Iterator[str]:
    twice = (
        select(TRIALS.c.suggestion_id, func.count().label("n"))
        .where(TRIALS.c.suggestion_id.is_not(None))
        .group_by(TRIALS.c.suggestion_id)
        .having(func.count() > 1)
    )
    for row in connection.execute(twice):
        yield f"suggestion {row.suggestion_id}: became {row.n} trials"
    claimed = SuggestionState.CLAIMED.value
    lost = (
        select(SUGGESTIONS.c.id, SUGGESTIONS.c.state, TRIALS.c.id.label("trial"))
        .outerjoin(TRIALS, TRIALS.c.suggestion_id == SUGGESTIONS.c.id)
        .where((SUGGESTIONS.c.state == claimed) != TRIALS.c.id.is_not(None))
    )
    for row in connection.execute(lost):
        yield f"suggestion {row.id} is {row.state}, its trial {row.trial}"


def _pushes_hold_a_running_trial(connection: Connection, _: datetime) -> Iterator[str]:
    query = (
        select(PUSHES.c.id, PUSHES.c.trial_id, TRIALS.c.state)
        .outerjoin(TRIALS, TRIALS.c.id == PUSHES.c.trial_id)
        .where(
            PUSHES.c.trial_id.is_not(None),
            or_(TRIALS.c.state.is_(None), TRIALS.c.state != TrialState.RUNNING.value),
        )
    )
    for row in connection.execute(query):
        yield f"push {row.id}: holds a slot for trial {row.trial_id}, which is {row.state}"


def _pushes_fit_their_study(connection: Connection, limit: datetime) -> Iterator[str]:
    is_announced = PUSHES.c.trial_id.is_(None)
    announced = func.sum(case((is_announced, 1), else_=0)).label("announced")
    silent = func.sum(case((and_(is_announced, PUSHES.c.sent_at < limit - RESENT_WITHIN), 1), else_=0))
    counted = select(PUSHES.c.study_id, func.count().label("n"), announced, silent.label("silent"))
    for row in connection.execute(counted.group_by(PUSHES.c.study_id)).all():
        study = study_from(connection.execute(select(STUDIES).where(STUDIES.c.id == row.study_id)).one())
        n_slots = study.spec.push.slots if study.spec.push is not None else 0
        # with fewer slots than before, trials under way keep theirs, and nothing is announced
        if n_slots == 0 or (row.announced and row.n > n_slots):
            yield f"study {study.id}: {row.n} pushes, {row.announced} of them announced, for {n_slots} slots"
        if row.silent and study.state is StudyState.ACTIVE and reason_to_stop(study, now=limit) is None:
            yield f"study {study.id}: {row.silent} pushes announced, and nobody sends them again"


def _deliveries_end_as_answered(connection: Connection, _: datetime) -> Iterator[str]:
    is_good = DELIVERIES.c.status.between(200, 299)
    delivered = DELIVERIES.c.state == DeliveryState.DELIVERED.value
    failed = DELIVERIES.c.state == DeliveryState.FAILED.value
    query = select(DELIVERIES).where(
        or_(
            and_(delivered, or_(DELIVERIES.c.status.is_(None), ~is_good)),
            and_(failed, DELIVERIES.c.last_error.is_(None)),
        )
    )
    for row in connection.execute(query):
        yield f"delivery {row.id}: {row.state} with status {row.status} and error {row.last_error}"


def _somebody_delivers(connection: Connection, limit: datetime) -> Iterator[str]:
    # one slow receiver may keep its own messages waiting, but not every sender for so long
    pending = DELIVERIES.c.state == DeliveryState.PENDING.value
    first = connection.execute(select(func.min(DELIVERIES.c.ready_at)).where(pending)).scalar()
    last = connection.execute(select(func.max(DELIVERIES.c.updated_at))).scalar()
    if first is not None and last is not None and first < limit and last < limit:
        yield f"a delivery is due since {first}, and since {last} nobody sent any"


RULES: Final[tuple[Rule, ...]] = (
    _numbers_are_dense,
    _counters_are_true,
    _versions_are_true,
    _bests_are_true,
    _results_are_recorded_once,
    _running_trials_have_one_attempt,
    _nothing_is_stuck,
    _suggestions_become_one_trial,
    _pushes_hold_a_running_trial,
    _pushes_fit_their_study,
    _deliveries_end_as_answered,
    _somebody_delivers,
)
