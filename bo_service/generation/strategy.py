"""Which generator answers a request: initial design, baseline, model, or the labelled fallback.

Importing this module loads neither torch nor Ax: studies without a model, and fallbacks, live without them.
"""

from __future__ import annotations

import time

from bo_service.domain.proposal import Candidate, FitRecord, Proposal, ProposalRequest, StudyView
from bo_service.generation.design import BASELINE, FALLBACK, INITIAL_SOBOL, design_candidates
from surrogates.registry import plugin

MIN_EVALUATED = 2
"""With fewer observations there is nothing to learn a scale from."""


def propose(view: StudyView, request: ProposalRequest, *, warm_state: bytes | None) -> Proposal:
    """Candidates for a study, best first; fewer than asked for where the space is exhausted.

    The same arguments give the same candidates, bit for bit on one machine.
    Raises: UnknownSurrogate, EmptyRegion.
    """
    started = time.perf_counter()
    if request.fallback_reason is not None:
        return _designed(view, request, generator=FALLBACK, started=started)
    chosen = plugin(view.spec.surrogate.name)
    if not chosen.abilities.needs_model:
        return _designed(view, request, generator=BASELINE, started=started)
    n_needed = max(MIN_EVALUATED, chosen.abilities.min_observations)
    if view.n_started < view.spec.n_initial or len(view.evaluated) < n_needed:
        return _designed(view, request, generator=INITIAL_SOBOL, started=started)
    # Ax and torch take seconds to import, and nothing above needs them
    from bo_service.generation.ladder import climb  # noqa: PLC0415

    return climb(view, request, plugin=chosen, warm_state=warm_state, started=started)


def _designed(view: StudyView, request: ProposalRequest, *, generator: str, started: float) -> Proposal:
    candidates: tuple[Candidate, ...] = design_candidates(view, request, generator=generator)
    diagnostics = {"n_observations": len(view.evaluated), "exhausted": len(candidates) < request.count}
    return Proposal(
        candidates=candidates,
        fit=FitRecord(
            surrogate=view.spec.surrogate.name,
            state=None,
            diagnostics=diagnostics,
            seconds=time.perf_counter() - started,
        ),
    )
