"""The tasks: a few lines each; whoever runs them, embedded or behind a broker, runs these."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field, replace

from bo_service.domain.job import Job
from bo_service.domain.proposal import Proposal, ProposalRequest, StudyView
from bo_service.orchestrator.advance_study import advance_study
from bo_service.orchestrator.bookkeeping import needs_model
from bo_service.orchestrator.ports import UnitOfWork
from bo_service.orchestrator.rescue_claims import rescue_claims
from bo_service.orchestrator.study_view import KnownTrials
from bo_service.telemetry import bound_to, span

logger = logging.getLogger(__name__)


def generate(view: StudyView, request: ProposalRequest, warm_state: bytes | None) -> Proposal:
    """generation.strategy.propose under the orchestrator's name for it."""
    from bo_service.generation.strategy import propose  # noqa: PLC0415  keeps this module light for its tests

    with span("bo.propose", {"bo.count": request.count, "bo.n_trials": len(view.evaluated)}) as current:
        proposal = propose(view, request, warm_state=warm_state)
        current.set_attribute("bo.surrogate", proposal.fit.surrogate)
    return proposal


@dataclass(slots=True)
class Desk:
    """One executor's place of work, with what it remembers between jobs."""

    uow: UnitOfWork
    device: str = "cpu"
    """What its models are fitted on."""
    known: KnownTrials = field(default_factory=KnownTrials)
    _is_warm: bool = False

    def run(self, job: Job) -> None:
        """Step 6. Running it twice is harmless: the fencing token of the first is void."""
        with (
            bound_to(study=job.study_id, job=job.id),
            span("bo.advance", {"bo.study": job.study_id, "bo.job": job.id}, parent=job.trace),
        ):
            started = time.perf_counter()
            n_written = advance_study(job, uow=self.uow, generate=self._generate, known=self.known)
            logger.debug("wrote %d suggestions in %.3f s", n_written, time.perf_counter() - started)

    def _generate(self, view: StudyView, request: ProposalRequest, warm_state: bytes | None) -> Proposal:
        """`generate`; the first study with a model has what fits models imported while its first trials run."""
        proposal = generate(view, replace(request, device=self.device), warm_state)
        if not self._is_warm and needs_model(view.spec):
            self._is_warm = True
            threading.Thread(target=self.warm_up, name="warm-up", daemon=True).start()
        return proposal

    def prepare(self) -> None:
        """Import what every job needs, and all of SciPy with it.

        To be done before `warm_up` runs in another thread: SciPy looks into a torch that is half imported, and fails.
        """
        import bo_service.generation.strategy  # noqa: F401, PLC0415

    def warm_up(self) -> None:
        """Import Ax and torch before the first fit needs them: seconds, and hundreds of megabytes."""
        self._is_warm = True
        import bo_service.generation.ladder  # noqa: F401, PLC0415

    def rescue(self, job: Job) -> int:
        """Space-filling suggestions for claims that wait behind an overdue fit, in the trace of that fit."""

        def draw(view: StudyView, request: ProposalRequest, warm_state: bytes | None) -> Proposal:
            with span("bo.rescue", {"bo.study": job.study_id, "bo.job": job.id}, parent=job.trace):
                return generate(view, request, warm_state)

        return rescue_claims(job, uow=self.uow, generate=draw)
