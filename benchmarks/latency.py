"""Seconds a suggestion of `gp` beside stock Ax in the same run, one thread.

Stock Ax: Generators.BOTORCH_MODULAR with its defaults, a fresh fit and one candidate; the mixture as its shares
and one equality, through core objects. Ours: the same data through `propose`, warm-started as in service.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from bo_service.domain.proposal import Evaluated, Measurement, ProposalRequest, StudyView
from bo_service.domain.spec import StudySpec
from bo_service.generation.strategy import propose
from surrogates.sampling import space_filling

METRICS = [{"name": "loss", "goal": "minimize"}]


def box(d: int) -> StudySpec:
    """A box of d floats."""
    parameters = [{"type": "float", "name": f"x{i}", "low": 0.0, "high": 1.0} for i in range(d)]
    return StudySpec.model_validate({"name": "box", "parameters": parameters, "metrics": METRICS})


def mixture(k: int) -> StudySpec:
    """A mixture of k components."""
    components = [{"name": f"x{i}"} for i in range(k)]
    parameters = [{"type": "mixture", "name": "mix", "components": components}]
    return StudySpec.model_validate({"name": "mix", "parameters": parameters, "metrics": METRICS})


def flat(parameters: Any) -> dict[str, float]:
    """A configuration as name -> number."""
    return dict(parameters.get("mix", parameters))


def loss(parameters: Any) -> float:
    """A bowl with a ripple."""
    values = list(flat(parameters).values())
    ripple = torch.tensor(values).mul(7).sin().sum().item()
    return sum((v - 0.3) ** 2 for v in values) + 0.05 * ripple


def timed(act: Callable[[], Any], repeats: int) -> float:
    """Median seconds, after one call that is not counted."""
    act()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        act()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def ours(spec: StudySpec, n: int, repeats: int) -> float:
    """Median seconds of `propose` on n observations, the state of the fit before at hand."""
    points = space_filling(spec.space, n, seed=3)
    evaluated = tuple(
        Evaluated(number=i, parameters=p, measurements={"loss": Measurement(value=loss(p))})
        for i, p in enumerate(points)
    )
    before = StudyView(spec=spec, seed=1, data_version=n - 1, evaluated=evaluated[:-1], n_started=n - 1)
    state = propose(before, ProposalRequest(), warm_state=None).fit.state
    view = StudyView(spec=spec, seed=1, data_version=n, evaluated=evaluated, n_started=n)
    return timed(lambda: propose(view, ProposalRequest(), warm_state=state), repeats)


def stock(spec: StudySpec, n: int, repeats: int) -> float:
    """Median seconds of stock Ax on the same observations."""
    from ax.adapter.registry import Generators
    from ax.core.arm import Arm
    from ax.core.data import Data
    from ax.core.experiment import Experiment
    from ax.core.metric import Metric
    from ax.core.objective import Objective
    from ax.core.optimization_config import OptimizationConfig
    from ax.core.parameter import ParameterType, RangeParameter
    from ax.core.parameter_constraint import ParameterConstraint
    from ax.core.search_space import SearchSpace
    from pandas import DataFrame

    points = [flat(p) for p in space_filling(spec.space, n, seed=3)]
    names = list(points[0])
    constraints = [ParameterConstraint(equality=f"{' + '.join(names)} == 1")] if spec.name == "mix" else []
    space = SearchSpace(
        parameters=[
            RangeParameter(name=x, parameter_type=ParameterType.FLOAT, lower=0, upper=1) for x in names
        ],
        parameter_constraints=constraints,
    )
    goal = OptimizationConfig(objective=Objective(metric=Metric(name="loss"), minimize=True))
    experiment = Experiment(name="stock", search_space=space, optimization_config=goal)
    rows = []
    for i, point in enumerate(points):
        trial = experiment.new_trial().add_arm(Arm(name=f"{i}_0", parameters=point))
        trial.mark_running(no_runner_required=True)
        trial.mark_completed()
        value = loss(point)
        rows.append(
            {
                "trial_index": i,
                "arm_name": f"{i}_0",
                "metric_name": "loss",
                "metric_signature": "loss",
                "mean": value,
                "sem": None,
            }
        )
    experiment.attach_data(Data(df=DataFrame.from_records(rows)))

    def suggest() -> None:
        Generators.BOTORCH_MODULAR(experiment=experiment, data=experiment.lookup_data()).gen(1)

    return timed(suggest, repeats)


def main() -> None:
    """The table, with ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = [(f"8 floats, {n} trials", box(8), n) for n in (20, 100, 300)]
    cases.append(("mixture of 6, 30 trials", mixture(6), 30))
    table = []
    for name, spec, n in cases:
        mine, theirs = ours(spec, n, options.repeats), stock(spec, n, options.repeats)
        table.append({"case": name, "gp_seconds": mine, "stock_ax_seconds": theirs, "ratio": theirs / mine})
        if not options.json:
            print(
                f"{name:26} gp {mine:7.3f} s   stock Ax {theirs:7.3f} s   ratio {theirs / mine:6.1f}",
                flush=True,
            )
    if options.json:
        print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
