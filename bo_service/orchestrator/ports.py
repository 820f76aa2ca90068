"""What the loop needs from the world: a store with transactions, and someone to wake for compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any, Protocol

from bo_service.domain.ids import (
    FitId,
    JobId,
    LeaseToken,
    ProjectId,
    PushId,
    StudyId,
    SuggestionId,
    TrialId,
    WebhookId,
)
from bo_service.domain.job import Job, JobKind, Queue, ServiceProcess
from bo_service.domain.lease import Lease
from bo_service.domain.proposal import Measurement, Parameters
from bo_service.domain.push import Push
from bo_service.domain.records import ApiKey, AuditEntry, Event, Fit, Observation, Page, StoredReply
from bo_service.domain.study import Study, StudyState
from bo_service.domain.suggestion import Suggestion, SuggestionState
from bo_service.domain.trial import Attempt, AttemptExit, Trial, TrialState
from bo_service.domain.webhook import Delivery, DeliveryState, DueWebhook, Webhook


class Studies(Protocol):
    """The studies of all projects."""

    def add(self, study: Study) -> None:
        """Raises: NameTaken."""

    def find(self, project_id: ProjectId, key: str, *, lock: bool = False) -> Study:
        """By id or by name. `lock` keeps other writers of this study out until the transaction ends.

        Raises: NotFound.
        """

    def get(self, study_id: StudyId, *, lock: bool = False) -> Study:
        """By id. Raises: NotFound."""

    def save(self, study: Study) -> None:
        """Write state, counters and versions."""

    def save_spec(self, study: Study) -> None:
        """Write the edited specification too."""

    def page(
        self,
        project_id: ProjectId,
        *,
        state: StudyState | None,
        updated_since: datetime | None,
        cursor: str | None,
        limit: int,
    ) -> Page[Study]:
        """Newest first."""


class Trials(Protocol):
    """Trials with their attempts and observations."""

    def add(self, trials: Sequence[Trial]) -> None: ...

    def get(self, trial_id: TrialId) -> Trial:
        """Raises: NotFound."""

    def with_study(self, trial_id: TrialId, *, lock: bool = False) -> tuple[Trial, Study]:
        """A trial and its study; `lock` keeps out who would change either, the study's writers first.

        Raises: NotFound.
        """

    def lease(self, trial_id: TrialId) -> Lease:
        """Who holds the trial, without a lock. Raises: NotFound."""

    def keep_lease(self, lease: Lease, *, now: datetime, lease_expires_at: datetime) -> bool:
        """Extend it, in nobody's way but that of who moves this very trial; False where the token is void by now."""

    def save(self, trial: Trial) -> None: ...

    def running_of(self, study_id: StudyId, worker: str) -> Sequence[Trial]:
        """RUNNING trials this worker holds, oldest first, locked."""

    def queued(self, study_id: StudyId, *, limit: int) -> Sequence[Trial]:
        """QUEUED trials, oldest first."""

    def expired(self, *, now: datetime, limit: int) -> Sequence[Trial]:
        """RUNNING trials whose lease ended, of all studies."""

    def front(self, study_id: StudyId) -> Sequence[Trial]:
        """The non-dominated feasible trials by number."""

    def page(
        self,
        study_id: StudyId,
        *,
        states: Sequence[TrialState] = (),
        worker: str | None = None,
        number: int | None = None,
        updated_since: datetime | None = None,
        cursor: str | None = None,
        limit: int = 100,
        newest_first: bool = False,
    ) -> Page[Trial]:
        """By number; with `updated_since` by time of change."""

    def known(self, study_id: StudyId, *, after_version: int = -1, up_to_version: int) -> Iterator[Trial]:
        """Trials that closed within these data versions, by number, streamed."""

    def open_parameters(self, study_id: StudyId) -> Sequence[Parameters]:
        """Configurations of RUNNING, PAUSED and QUEUED trials, by number."""

    def add_attempt(self, attempt: Attempt) -> None: ...

    def renew_attempt(self, trial: Trial, *, now: datetime) -> None: ...

    def end_attempt(self, trial: Trial, how: AttemptExit, *, now: datetime) -> None:
        """Close the latest attempt of the trial as it was before it moved on."""

    def attempts(self, trial_id: TrialId) -> Sequence[Attempt]: ...

    def observe(self, trial: Trial, step: int, values: Mapping[str, Measurement], at: datetime) -> None:
        """Record values of the trial's present attempt; the same value again changes nothing.

        Raises: Conflict on another value.
        """

    def observe_final(self, trials: Sequence[Trial], at: datetime) -> None:
        """Record the final values of trials that are new."""

    def observations(self, trial_id: TrialId) -> Sequence[Observation]:
        """By step and metric; of several attempts at one step the last."""


class Suggestions(Protocol):
    """Prepared configurations."""

    def add(self, suggestions: Sequence[Suggestion]) -> None: ...

    def get(self, suggestion_id: SuggestionId) -> Suggestion:
        """Raises: NotFound."""

    def save(self, suggestions: Sequence[Suggestion]) -> None: ...

    def take(self, study: Study, *, fixed_key: str, limit: int) -> Sequence[Suggestion]:
        """Still PREPARED: the user's first, then fresh ones of the generator, in order."""

    def n_fresh(self, study: Study, *, fixed_key: str = "") -> int:
        """Generated suggestions that could be given out now."""

    def n_ready(self, study: Study) -> int:
        """What a claim without fixed values could take now: the user's and the generator's."""

    def prepared(self, study_id: StudyId) -> Sequence[Suggestion]: ...

    def supersede(
        self,
        study_id: StudyId,
        *,
        before_version: int,
        fixed_key: str | None = None,
        including_timeless: bool = False,
    ) -> int:
        """Retire generated suggestions made at earlier data versions, for these fixed values or for all.

        Timeless ones stay unless included.
        """

    def page(self, study_id: StudyId, *, state: SuggestionState | None, limit: int) -> Sequence[Suggestion]:
        """Newest first."""


class Jobs(Protocol):
    """The outbox and the queue's truth."""

    def enqueue(
        self,
        study_id: StudyId,
        kind: JobKind,
        payload: Mapping[str, Any],
        *,
        queue: Queue = Queue.CPU,
        ready_at: datetime | None = None,
        now: datetime,
    ) -> None:
        """Queue once, for now or for later: a queued one absorbs it, a running one becomes dirty."""

    def claim(
        self, *, now: datetime, lease_seconds: float, token: LeaseToken, job_id: JobId | None = None
    ) -> Job | None:
        """The job of this id, or the one that waits longest, now RUNNING under this token; None where it is not due."""

    def to_send(self, *, now: datetime, resend_after: timedelta, limit: int) -> Sequence[Job]:
        """Due jobs of which somebody should be told now, marked as sent; no two relays get the same."""

    def unsend(self, job_ids: Sequence[JobId]) -> None:
        """Take the mark back from jobs whose message could not be sent."""

    def get(self, job_id: JobId, *, lock: bool = True) -> Job:
        """Locked by default, after the study: every transaction locks in this order. Raises: NotFound."""

    def in_flight(self, study_id: StudyId) -> Job | None:
        """The QUEUED or RUNNING Advance of the study."""

    def save(self, job: Job) -> None: ...

    def renew(self, job_id: JobId, token: LeaseToken, *, lease_expires_at: datetime) -> bool:
        """Extend the lease; False where the token is void."""

    def expired(self, *, now: datetime) -> Sequence[Job]:
        """RUNNING jobs whose lease ended."""

    def running_since(self, *, before: datetime) -> Sequence[Job]:
        """RUNNING jobs that were claimed before this time."""

    def held_under(self, token_prefix: str) -> Sequence[Job]:
        """RUNNING jobs whose token starts like this."""

    def forget_done(self, *, before: datetime) -> int:
        """Delete DONE jobs that ended before this time."""

    def saw_process(self, process: ServiceProcess) -> None:
        """Note what a compute worker or relay says of itself."""

    def processes(self, *, since: datetime) -> Sequence[ServiceProcess]:
        """Those heard of since then, by name."""

    def forget_processes(self, *, before: datetime | None = None, name: str | None = None) -> int:
        """Delete processes last heard of before this time, or the one of this name."""


class Pushes(Protocol):
    """Trials announced to fleets; whoever writes holds the study's lock."""

    def studies(self) -> Sequence[StudyId]:
        """ACTIVE studies with a push policy."""

    def of_study(self, study_id: StudyId) -> Sequence[Push]:
        """Announced, or with a trial that runs; oldest first."""

    def add(self, pushes: Sequence[Push]) -> None: ...

    def mark_sent(self, push_ids: Sequence[PushId], *, now: datetime) -> None: ...

    def is_announced(self, push_id: PushId, study_id: StudyId) -> bool:
        """Whether it waits for its claim; False where it is spent, or another study's."""

    def take(self, push_id: PushId, trial_id: TrialId) -> None:
        """Its claim got this trial."""

    def spend(self, study_id: StudyId, push_ids: Sequence[PushId]) -> None:
        """Delete these: their messages brought nothing, or were not sent."""

    def free(self, study_id: StudyId, trial_id: TrialId) -> None:
        """The trial's attempt ended: its slot, if it has one, is free, and the relay hears of it."""

    def withdraw(self, study_id: StudyId, *, including_taken: bool) -> None:
        """Delete what the study announced: its messages find nothing."""


class Records(Protocol):
    """Events, fits, keys, stored replies and worker sightings."""

    def add_event(self, event: Event) -> None: ...

    def events(
        self, study_id: StudyId, *, after: int, limit: int, trial_id: TrialId | None = None
    ) -> Sequence[Event]: ...

    def add_fit(self, fit: Fit) -> None: ...

    def fit(self, fit_id: FitId) -> Fit:
        """Raises: NotFound."""

    def latest_fit(self, study_id: StudyId) -> Fit | None:
        """The newest fit that kept a state."""

    def fits(self, study_id: StudyId, *, limit: int) -> Sequence[Fit]:
        """Newest first, without their states."""

    def ensure_project(self, name: str, *, now: datetime) -> ProjectId: ...

    def add_project(self, name: str, *, now: datetime) -> ProjectId | None:
        """A new project; None where there is one of this name."""

    def lock_project(self, project_id: ProjectId) -> None:
        """Others that lock it wait until this transaction ends; nobody else does."""

    def add_key(self, key: ApiKey) -> None: ...

    def key_by_hash(self, key_hash: str) -> ApiKey | None: ...

    def keys(self, project_id: ProjectId) -> Sequence[ApiKey]: ...

    def key(self, project_id: ProjectId, key_id: str, *, lock: bool = False) -> ApiKey:
        """Raises: NotFound."""

    def revoke_key(self, key_id: str, *, at: datetime) -> None:
        """Write when it ends, now or later."""

    def add_audit(self, entry: AuditEntry) -> None: ...

    def audit(self, project_id: ProjectId, *, cursor: str | None, limit: int) -> Page[AuditEntry]:
        """Newest first."""

    def reply(self, project_id: ProjectId, key: str) -> StoredReply | None:
        """The answer given under this key; others who ask with it wait until this transaction ends."""

    def remember_reply(
        self, project_id: ProjectId, key: str, reply: StoredReply, *, now: datetime
    ) -> None: ...

    def forget_replies(self, *, before: datetime) -> int: ...

    def saw_worker(self, study_id: StudyId, worker: str, *, slots: int, now: datetime) -> None:
        """Note that this worker asked for so many trials."""

    def n_workers(self, study_id: StudyId, *, since: datetime) -> int:
        """Slots of the workers seen since then."""


class Webhooks(Protocol):
    """Who wants to hear of studies, and the messages on their way: an outbox of its own."""

    def add(self, webhook: Webhook) -> None: ...

    def get(self, webhook_id: WebhookId, *, lock: bool = False) -> Webhook:
        """By id, of any project. Raises: NotFound."""

    def find(self, project_id: ProjectId, webhook_id: str, *, lock: bool = False) -> Webhook:
        """By id within a project. Raises: NotFound."""

    def of_project(self, project_id: ProjectId) -> Sequence[Webhook]:
        """Oldest first."""

    def listening(self, project_id: ProjectId, study_id: StudyId) -> Sequence[tuple[Webhook, int]]:
        """Enabled ones that hear of this study, each with how many of its deliveries are PENDING.

        They cannot be removed until the transaction ends.
        """

    def save(self, webhook: Webhook) -> None: ...

    def remove(self, webhook_id: WebhookId) -> None:
        """Its deliveries go with it."""

    def add_deliveries(self, deliveries: Sequence[Delivery]) -> None: ...

    def delivery(self, webhook_id: WebhookId, delivery_id: str) -> Delivery:
        """Raises: NotFound."""

    def deliveries(
        self, webhook_id: WebhookId, *, state: DeliveryState | None, cursor: str | None, limit: int
    ) -> Page[Delivery]:
        """Newest first."""

    def n_pending(self, webhook_id: WebhookId) -> int: ...

    def due(self, *, now: datetime, without: Sequence[WebhookId], limit: int) -> Sequence[DueWebhook]:
        """Webhooks that have a due delivery, the one that waits longest first.

        Of each project at most `limit` failing ones and as many others: no project hides another one's.
        """

    def take(self, webhook_id: WebhookId, *, now: datetime, until: datetime) -> Delivery | None:
        """The webhook's delivery that is due longest, its sender's until then; no two senders get the same."""

    def save_delivery(self, delivery: Delivery) -> None: ...

    def settle(self, delivery: Delivery) -> bool:
        """Save what became of a try; False where the delivery is another sender's by now, or is settled."""

    def hold(self, webhook_id: WebhookId, *, now: datetime, until: datetime) -> None:
        """The webhook's due deliveries are due again at that time."""

    def release(self, webhook_id: WebhookId, *, now: datetime) -> None:
        """The webhook's deliveries that were never tried are due now."""

    def give_up(self, webhook_id: WebhookId, *, reason: str, now: datetime) -> int:
        """Every PENDING delivery of the webhook is FAILED."""

    def forget_deliveries(self, *, before: datetime) -> int:
        """Delete DELIVERED and FAILED ones that ended before this time."""


class Store(Protocol):
    """One transaction's view of everything; nothing lasts before `commit`."""

    @property
    def studies(self) -> Studies: ...
    @property
    def trials(self) -> Trials: ...
    @property
    def suggestions(self) -> Suggestions: ...
    @property
    def jobs(self) -> Jobs: ...
    @property
    def pushes(self) -> Pushes: ...
    @property
    def records(self) -> Records: ...
    @property
    def webhooks(self) -> Webhooks: ...

    def now(self) -> datetime:
        """The database's clock, UTC."""

    def commit(self) -> None:
        """Make the transaction last; then wake whom it concerns."""


class UnitOfWork(Protocol):
    """Opens a transaction; leaving it without commit rolls back."""

    def __call__(self, *, read_only: bool = False) -> AbstractContextManager[Store]: ...


class Wakeup(Protocol):
    """Tells compute that jobs wait and claims that suggestions came; losing a call costs time, never data."""

    def compute(self) -> None: ...

    def study_changed(self, study_id: StudyId) -> None: ...
