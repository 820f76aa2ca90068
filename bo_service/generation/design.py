"""Candidates that look at no outcome: the initial design, the `sobol` baseline, the labelled fallback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bo_service.domain.proposal import Candidate, ProposalRequest, StudyView
from surrogates.sampling import Sample, centre, space_filling
from surrogates.space import SearchSpace

N_SPARE: Final = 64
"""So many points of the sequence in a row may be repeats before the space counts as exhausted."""

INITIAL_CENTRE: Final = "initial:centre"
INITIAL_SOBOL: Final = "initial:sobol"
BASELINE: Final = "sobol"
FALLBACK: Final = "space-filling"


def taken_keys(view: StudyView) -> set[str]:
    """Digests of every configuration that was tried or is about to be."""
    key = view.spec.space.key
    tried = (e.parameters for e in view.evaluated)
    groups = (tried, view.infeasible, view.failed, view.pending)
    return {key(parameters) for group in groups for parameters in group}


def design_candidates(view: StudyView, request: ProposalRequest, *, generator: str) -> tuple[Candidate, ...]:
    """The next untried points of the study's sequence; the centre comes first unless this is the baseline."""
    taken = taken_keys(view)
    found: list[Candidate] = []
    n_repeats = 0
    for sample, is_centre in _sequence(view, request, with_centre=generator != BASELINE):
        key = view.spec.space.key(sample)
        if key in taken:
            n_repeats += 1
            if n_repeats > N_SPARE:
                break
            continue
        n_repeats = 0
        taken.add(key)
        label = INITIAL_CENTRE if is_centre and generator == INITIAL_SOBOL else generator
        found.append(Candidate(parameters=sample, generator=label, fallback_reason=request.fallback_reason))
        if len(found) == request.count:
            break
    return tuple(found)


def _sequence(
    view: StudyView, request: ProposalRequest, *, with_centre: bool
) -> Iterator[tuple[Sample, bool]]:
    """Endless: point 0 is the centre, point i the Sobol point i - 1."""
    space: SearchSpace = view.spec.space
    index = view.design_index
    if with_centre and index == 0:
        yield centre(space, request.fixed), True
    start = max(index - 1, 0) if with_centre else index
    batch = request.count
    while True:
        for sample in space_filling(space, batch, seed=view.seed, start=start, fixed=request.fixed):
            yield sample, False
        start += batch
        batch = 16
