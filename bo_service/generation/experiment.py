"""Model data as an Ax experiment in memory: features as range parameters in [0, 1], outcomes in model units.

The geometry of the search space (conditions, grids, mixtures, linear constraints) stays in our encoding and
optimiser, because Ax would treat equalities by SLSQP and conditions not at all (docs/adr/0004).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from ax.core.arm import Arm
from ax.core.data import Data
from ax.core.experiment import Experiment
from ax.core.metric import Metric as AxMetric
from ax.core.objective import MultiObjective, Objective
from ax.core.optimization_config import MultiObjectiveOptimizationConfig, OptimizationConfig
from ax.core.outcome_constraint import ObjectiveThreshold, OutcomeConstraint
from ax.core.parameter import ParameterType, RangeParameter
from ax.core.search_space import SearchSpace as AxSearchSpace
from ax.core.types import ComparisonOp

from bo_service.domain.spec import StudySpec
from bo_service.generation.model_units import FEASIBLE, ModelData


def feature_name(column: int) -> str:
    """The Ax parameter of a feature column; Ax's own order is that of declaration."""
    return f"f{column}"


def ax_space(n_features: int) -> AxSearchSpace:
    """The unit cube of the features."""
    return AxSearchSpace(
        parameters=[
            RangeParameter(name=feature_name(i), parameter_type=ParameterType.FLOAT, lower=0.0, upper=1.0)
            for i in range(n_features)
        ]
    )


def as_parameters(row: np.ndarray) -> dict[str, float]:
    """A feature row as an Ax parameterisation."""
    return {feature_name(i): float(value) for i, value in enumerate(row)}


def ax_experiment(data: ModelData, spec: StudySpec) -> Experiment:
    """An experiment with a completed trial for each feature row, and the optimization config of the study."""
    experiment = Experiment(
        name="study",
        search_space=ax_space(data.encoding.n_features),
        optimization_config=optimization_config(data, spec),
    )
    records = []
    # Ax wants one name for one parameterisation, however often it was measured
    first: dict[bytes, str] = {}
    arm_names = [first.setdefault(row.tobytes(), f"{i}_0") for i, row in enumerate(data.features)]
    for name, row in zip(arm_names, data.features, strict=True):
        trial = experiment.new_trial().add_arm(Arm(name=name, parameters=as_parameters(row)))
        trial.mark_running(no_runner_required=True)
        trial.mark_completed()
    for outcome in data.outcomes:
        sems = (
            np.full(len(outcome.values), np.nan) if outcome.variances is None else np.sqrt(outcome.variances)
        )
        records += [
            {
                "trial_index": int(i),
                "arm_name": arm_names[int(i)],
                "metric_name": outcome.name,
                "metric_signature": outcome.name,
                "mean": float(value),
                "sem": float(sem),
            }
            for i, value, sem in zip(outcome.rows, outcome.values, sems, strict=True)
        ]
    experiment.attach_data(Data(df=pd.DataFrame.from_records(records)))
    return experiment


def optimization_config(data: ModelData, spec: StudySpec) -> OptimizationConfig:
    """Objectives to maximise (model units), thresholds, and outcome constraints."""
    objectives = [Objective(metric=AxMetric(name=m.name), minimize=False) for m in spec.objectives]
    constraints = outcome_constraints(data, spec)
    if len(objectives) == 1:
        return OptimizationConfig(objective=objectives[0], outcome_constraints=constraints)
    thresholds = [
        ObjectiveThreshold(
            metric=AxMetric(name=m.name),
            bound=data.outcome(m.name).bound(float(m.threshold)),
            relative=False,
            op=ComparisonOp.GEQ,
        )
        for m in spec.objectives
        if m.threshold is not None
    ]
    return MultiObjectiveOptimizationConfig(
        objective=MultiObjective(objectives=objectives),
        outcome_constraints=constraints,
        objective_thresholds=thresholds,
    )


def outcome_constraints(data: ModelData, spec: StudySpec) -> list[OutcomeConstraint]:
    """Bounds of the metrics in model units, and the probability of being evaluable."""
    found = []
    for metric in spec.outcome_constraints:
        outcome = data.outcome(metric.name)
        for value, is_upper in ((metric.upper, True), (metric.lower, False)):
            if value is not None:
                # a sign of -1 turns an upper bound into a lower one
                op = ComparisonOp.LEQ if is_upper == (outcome.sign > 0) else ComparisonOp.GEQ
                found.append(
                    OutcomeConstraint(
                        metric=AxMetric(name=metric.name),
                        op=op,
                        bound=outcome.bound(float(value)),
                        relative=False,
                    )
                )
    if any(outcome.name == FEASIBLE for outcome in data.outcomes):
        found.append(
            OutcomeConstraint(metric=AxMetric(name=FEASIBLE), op=ComparisonOp.GEQ, bound=0.5, relative=False)
        )
    return found
