"""Placeholder."""

from __future__ import annotations
import warnings
from bo_service.domain.proposal import *
from surrogates.sampling import space_filling


def propose(view, request, *, warm_state):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pts = space_filling(
            view.spec.space, request.count, seed=view.seed, start=view.design_index, fixed=dict(request.fixed)
        )
    return Proposal(
        candidates=tuple(
            Candidate(parameters=p, generator="sobol", fallback_reason=request.fallback_reason) for p in pts
        ),
        fit=FitRecord(surrogate=view.spec.surrogate.name, state=None),
    )
