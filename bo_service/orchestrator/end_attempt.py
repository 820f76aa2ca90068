"""Step 5, without a result: a worker fails, releases or finds its trial infeasible; a user cancels or abandons it."""

from __future__ import annotations

from typing import Final, Literal

from bo_service.domain.errors import TrialClosed
from bo_service.domain.ids import LeaseToken, ProjectId, TrialId
from bo_service.domain.records import Event, EventKind
from bo_service.domain.trial import AttemptExit, Trial, TrialState
from bo_service.orchestrator.bookkeeping import close_trial, end_attempt_without_result, requeue_trial
from bo_service.orchestrator.find_trial import find_trial
from bo_service.orchestrator.ports import UnitOfWork

MAX_REASON_CHARACTERS: Final = 16_384


def size_limited(text: str) -> str:
    """The text, its middle left out where it is too long: a traceback matters at both ends."""
    if len(text) <= MAX_REASON_CHARACTERS:
        return text
    half = MAX_REASON_CHARACTERS // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n... {left_out} characters left out ...\n{text[-half:]}"


def fail_trial(
    trial_id: TrialId,
    reason: str,
    *,
    how: Literal[AttemptExit.ERROR, AttemptExit.TIMEOUT],
    retry: bool | None,
    lease: LeaseToken,
    project_id: ProjectId,
    uow: UnitOfWork,
) -> Trial:
    """End the attempt: QUEUED again where a retry is asked for (by default as the policy says), else FAILED.

    Raises: NotFound, LeaseLost, TrialClosed.
    """
    with uow() as store:
        trial, study = find_trial(trial_id, project_id=project_id, store=store, lock=True)
        trial.require_lease(lease)
        ended = end_attempt_without_result(
            trial,
            how,
            study=study,
            store=store,
            now=store.now(),
            reason=size_limited(reason),
            may_retry=study.spec.retry.retry_failures if retry is None else retry,
        )
        store.commit()
    return ended


def mark_infeasible(
    trial_id: TrialId, reason: str, *, lease: LeaseToken, project_id: ProjectId, uow: UnitOfWork
) -> Trial:
    """Close as INFEASIBLE: the configuration cannot be evaluated, and the model learns to avoid its like.

    Raises: NotFound, LeaseLost, TrialClosed.
    """
    with uow() as store:
        trial, study = find_trial(trial_id, project_id=project_id, store=store, lock=True)
        trial.require_lease(lease)
        closed = close_trial(
            trial,
            TrialState.INFEASIBLE,
            AttemptExit.INFEASIBLE,
            study=study,
            store=store,
            now=store.now(),
            reason=size_limited(reason),
        )
        store.commit()
    return closed


def release_trial(trial_id: TrialId, *, lease: LeaseToken, project_id: ProjectId, uow: UnitOfWork) -> Trial:
    """Give the trial back unevaluated: QUEUED, the attempt not counted; ABANDONED if it was cancelled.

    Raises: NotFound, LeaseLost, TrialClosed.
    """
    with uow() as store:
        trial, study = find_trial(trial_id, project_id=project_id, store=store, lock=True)
        trial.require_lease(lease)
        now = store.now()
        if trial.stop_requested:
            ended = close_trial(
                trial,
                TrialState.ABANDONED,
                AttemptExit.RELEASED,
                study=study,
                store=store,
                now=now,
                reason=trial.reason or "cancelled",
            )
        else:
            ended = requeue_trial(
                trial, AttemptExit.RELEASED, study=study, store=store, now=now, reason=None, counted=False
            )
        store.commit()
    return ended


def abandon_trial(trial_id: TrialId, reason: str | None, *, project_id: ProjectId, uow: UnitOfWork) -> Trial:
    """Close an open trial for good, whoever holds it; its configuration is never suggested again.

    Raises: NotFound, TrialClosed.
    """
    with uow() as store:
        trial, study = find_trial(trial_id, project_id=project_id, store=store, lock=True)
        closed = close_trial(
            trial,
            TrialState.ABANDONED,
            AttemptExit.ABANDONED,
            study=study,
            store=store,
            now=store.now(),
            reason=reason,
        )
        store.commit()
    return closed


def cancel_trial(trial_id: TrialId, reason: str | None, *, project_id: ProjectId, uow: UnitOfWork) -> Trial:
    """Ask a running trial to stop; one that nobody works on is ABANDONED at once.

    Raises: NotFound, TrialClosed.
    """
    with uow() as store:
        trial, study = find_trial(trial_id, project_id=project_id, store=store, lock=True)
        if not trial.state.is_open:
            raise TrialClosed(
                f"trial {trial.number} is already {trial.state.value}", trial_state=trial.state.value
            )
        now = store.now()
        if trial.state is TrialState.RUNNING:
            cancelled = trial.asked_to_stop(reason=reason, now=now)
            store.trials.save(cancelled)
            store.records.add_event(
                Event(
                    study_id=study.id,
                    trial_id=trial.id,
                    kind=EventKind.STOP_REQUESTED,
                    payload={"number": trial.number, "reason": reason},
                    at=now,
                )
            )
        else:
            cancelled = close_trial(
                trial,
                TrialState.ABANDONED,
                AttemptExit.ABANDONED,
                study=study,
                store=store,
                now=now,
                reason=reason or "cancelled",
            )
        store.commit()
    return cancelled
