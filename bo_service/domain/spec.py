"""The study's schema: search space, metrics and policies, checked as a whole with every problem named."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt

from bo_service.domain.free_json import FreeJson, Text
from bo_service.domain.spec_parameters import (
    AnyConstraint,
    AnyParameter,
    Model,
    Name,
    Number,
    Scalar,
)
from surrogates.space import SearchSpace

Shares = dict[str, Number]
WireConfiguration = dict[str, Scalar | Shares]

MAX_COUNT = 10_000_000

StudyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._:/-]*$", max_length=128)]

Goal = Literal["minimize", "maximize", "constraint", "track"]


class Metric(Model):
    """A number the worker reports."""

    name: Name
    goal: Goal
    threshold: Number | None = Field(
        None, description="objectives: worse than this is of no interest (Pareto)"
    )
    lower: Number | None = Field(None, description="constraints: smallest acceptable value")
    upper: Number | None = Field(None, description="constraints: largest acceptable value")

    @property
    def is_objective(self) -> bool:
        return self.goal in ("minimize", "maximize")

    @property
    def sign(self) -> float:
        """+1 where larger is better, -1 where smaller is."""
        return 1.0 if self.goal == "maximize" else -1.0

    def is_satisfied_by(self, value: float) -> bool:
        """Whether the value keeps this metric's bounds."""
        return (self.lower is None or value >= self.lower) and (self.upper is None or value <= self.upper)


class InitialDesign(Model):
    """The trials before the first model."""

    size: Annotated[StrictInt, Field(ge=1, le=10_000)] | None = Field(
        None, description="centre plus Sobol points in the constrained space; by default from the dimension"
    )
    points: Annotated[list[WireConfiguration], Field(max_length=10_000)] = Field(
        default_factory=list, description="configurations to evaluate first"
    )


class RetryPolicy(Model):
    """What happens when an attempt ends without a result."""

    max_attempts: Annotated[StrictInt, Field(ge=1, le=100)] = 3
    lease_seconds: Annotated[Number, Field(ge=1, le=86_400)] = 60
    retry_failures: StrictBool = Field(False, description="also try again when the objective raised")
    non_finite: Literal["failed", "infeasible"] = Field(
        "failed", description="how NaN and infinity close a trial"
    )


class StoppingRules(Model):
    """The study stops when any rule holds; checked at every result and before every suggestion."""

    max_trials: Annotated[StrictInt, Field(ge=1, le=MAX_COUNT)] | None = None
    max_cost: Annotated[Number, Field(gt=0)] | None = None
    max_seconds: Annotated[Number, Field(gt=0)] | None = Field(None, description="wall time since creation")
    target: Number | None = Field(None, description="single objective: stop when reached")
    no_improvement_trials: Annotated[StrictInt, Field(ge=1, le=MAX_COUNT)] | None = None
    max_failure_rate: Annotated[Number, Field(gt=0, le=1)] | None = Field(
        None, description="share of closed trials that failed, once there are min_failures"
    )
    min_failures: Annotated[StrictInt, Field(ge=1, le=MAX_COUNT)] = 5


class SurrogateChoice(Model):
    """Which plug-in models the metrics, and its options."""

    name: Annotated[Text, Field(max_length=64)] = "gp"
    options: FreeJson = Field(default_factory=dict)


ObjectiveName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", max_length=256)]
"""`package.module:function`; never imported by the service."""


class PushPolicy(Model):
    """Trials are announced to a Celery fleet that evaluates this objective, instead of waiting to be claimed."""

    objective: ObjectiveName = Field(description="package.module:function, as the fleet was told to allow it")
    slots: Annotated[StrictInt, Field(ge=1, le=10_000)] = Field(
        description="trials announced or being evaluated by the fleet at the same time, at most"
    )
    queue: Annotated[str, Field(pattern=r"^objectives(\.[A-Za-z0-9_-]+)?$", max_length=64)] = Field(
        "objectives", description="`objectives`, or `objectives.NAME` for a fleet of its own"
    )


Acquisition = Literal["auto", "logei", "qlognei", "qlogei", "qlognehvi", "qlogehvi", "qucb"]


class StudySpec(Model):
    """Everything the submitter says about a study."""

    name: StudyName
    parameters: Annotated[list[AnyParameter], Field(min_length=1, max_length=1000)]
    constraints: Annotated[list[AnyConstraint], Field(max_length=200)] = Field(default_factory=list)
    metrics: Annotated[list[Metric], Field(min_length=1, max_length=50)]
    initial: InitialDesign = InitialDesign(size=None)
    seed: Annotated[StrictInt, Field(ge=0, lt=2**31)] | None = None
    parallelism: Annotated[StrictInt, Field(ge=1, le=10_000)] | None = None
    retry: RetryPolicy = RetryPolicy()
    stopping: StoppingRules = StoppingRules()
    surrogate: SurrogateChoice = SurrogateChoice()
    acquisition: Acquisition = "auto"
    staleness: Annotated[StrictInt, Field(ge=0, le=MAX_COUNT)] | None = Field(
        None, description="results a suggestion may lag behind; by default the number of running trials"
    )
    push: PushPolicy | None = Field(None, description="for a service with a broker")
    metadata: FreeJson = Field(default_factory=dict)

    @cached_property
    def space(self) -> SearchSpace:
        """The compiled search space; meaningful once `problems_of` found none."""
        return SearchSpace(
            parameters=tuple(parameter.compiled() for parameter in self.parameters),
            constraints=tuple(constraint.compiled() for constraint in self.constraints),
        )

    @property
    def objectives(self) -> tuple[Metric, ...]:
        return tuple(metric for metric in self.metrics if metric.is_objective)

    @property
    def outcome_constraints(self) -> tuple[Metric, ...]:
        """Metrics with a bound, whatever their goal."""
        return tuple(m for m in self.metrics if m.lower is not None or m.upper is not None)

    @property
    def required_metrics(self) -> tuple[Metric, ...]:
        """What a completed trial must report: everything that is not tracked only."""
        return tuple(metric for metric in self.metrics if metric.goal != "track")

    @property
    def n_initial(self) -> int:
        """Completed trials before the first model: 6 up to 8 free dimensions, then slowly more, at most 20.

        6 is the measured default (centre and 5 Sobol points); user's points count toward it.
        """
        if self.initial.size is not None:
            return self.initial.size
        levels = self.space.n_configurations
        by_dimension = 6 if self.space.n_free <= 8 else min(20, 6 + (self.space.n_free - 8 + 1) // 2)
        return int(min(by_dimension, levels))
