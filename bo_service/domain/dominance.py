"""Which trials count as best: feasibility and Pareto dominance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from bo_service.domain.proposal import Measurement
from bo_service.domain.spec import StudySpec
from bo_service.domain.trial import Trial, TrialState


def is_feasible(measurements: Mapping[str, Measurement], spec: StudySpec) -> bool:
    """Whether every bounded metric was reported and lies within its bounds."""
    return all(
        metric.name in measurements and metric.is_satisfied_by(measurements[metric.name].value)
        for metric in spec.outcome_constraints
    )


def scores(measurements: Mapping[str, Measurement], spec: StudySpec) -> tuple[float, ...] | None:
    """Objective values turned so that larger is better; None where one is missing."""
    if any(metric.name not in measurements for metric in spec.objectives):
        return None
    return tuple(metric.sign * measurements[metric.name].value for metric in spec.objectives)


def dominates(left: Sequence[float], right: Sequence[float]) -> bool:
    """At least as good everywhere and better somewhere."""
    return all(map(float.__ge__, left, right)) and any(map(float.__gt__, left, right))


def competes(trial: Trial, spec: StudySpec) -> tuple[float, ...] | None:
    """The scores with which a trial may enter the front, or None where it may not.

    An objective's threshold closes the front to trials that are worse, once there are several objectives.
    """
    if trial.state is not TrialState.COMPLETED or not is_feasible(trial.measurements, spec):
        return None
    found = scores(trial.measurements, spec)
    if found is None or any(math.isnan(score) for score in found):
        return None
    if len(found) > 1:
        for metric, score in zip(spec.objectives, found, strict=True):
            if metric.threshold is not None and score < metric.sign * metric.threshold:
                return None
    return found


def front_after(trial: Trial, front: Iterable[Trial], spec: StudySpec) -> tuple[bool, list[Trial]]:
    """Whether the trial joins the front, and the members it throws out.

    With one objective the front is one trial: ties keep the earlier one.
    """
    mine = competes(trial, spec)
    if mine is None:
        return False, []
    thrown: list[Trial] = []
    for member in front:
        theirs = scores(member.measurements, spec)
        if theirs is None:
            continue
        if dominates(theirs, mine) or theirs == mine:
            return False, []
        if dominates(mine, theirs):
            thrown.append(member)
    return True, thrown
