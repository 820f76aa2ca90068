"""Our side of Ax's Acquisition: the acquisition is built by Ax or in closed form, and searched by surrogates.search.

Closed form: analytic log EI on the NumPy posterior, where one objective, no constraint, nothing pending and one
candidate are asked for. Everything else: BoTorch's Monte Carlo acquisitions through autograd, batches greedily.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import torch
from ax.generators.torch.botorch_modular.acquisition import Acquisition
from botorch.acquisition import AcquisitionFunction
from botorch.acquisition.logei import (
    qLogExpectedImprovement,
    qLogNoisyExpectedImprovement,
    qLogProbabilityOfFeasibility,
)
from botorch.acquisition.monte_carlo import qUpperConfidenceBound
from botorch.acquisition.multi_objective.logei import qLogExpectedHypervolumeImprovement
from torch import Tensor

from surrogates.encoding import Array, Encoding
from surrogates.hypervolume import ScalarisedLogNEHVI
from surrogates.memberwise import MemberwiseLogNEHVI, MemberwiseLogNEI, member_sampler
from surrogates.numerics.exact_gp import Posterior
from surrogates.numerics.log_ei import log_ei, log_ei_with_gradient
from surrogates.search import Effort, Scored, ValueAndGradient, ValueOf, maximise

CLOSED_FORM: Final = "logei"
FEASIBILITY: Final = "qlogpof"

MONTE_CARLO: Final[Mapping[str, type[AcquisitionFunction]]] = {
    "qlogei": qLogExpectedImprovement,
    "qlognei": qLogNoisyExpectedImprovement,
    "qlogehvi": qLogExpectedHypervolumeImprovement,
    "qlognehvi": ScalarisedLogNEHVI,
    "qucb": qUpperConfidenceBound,
    FEASIBILITY: qLogProbabilityOfFeasibility,
}

MEMBERWISE: Final[Mapping[str, type[AcquisitionFunction]]] = {
    "qlognei": MemberwiseLogNEI,
    "qlognehvi": MemberwiseLogNEHVI,
}
"""What takes their place where every outcome's posterior is a set of functions."""

ACQUISITION_OPTIONS: Final[Mapping[str, Mapping[str, Any]]] = {"qucb": {"beta": 4.0}}

MONTE_CARLO_EFFORT: Final = Effort(n_raw=256, n_local=32, n_starts=4, max_iterations=40, is_joint=True)
"""A row of a Monte Carlo acquisition costs more than a closed form one, and rows in a batch cost little."""

EVALUATION_CHUNK: Final = 128


@runtime_checkable
class ClosedForm(Protocol):
    """A model with an exact NumPy posterior behind it."""

    @property
    def core(self) -> Posterior: ...


@dataclass(slots=True)
class SearchPlan:
    """What the search needs beyond Ax's own arguments, and where it leaves what it found."""

    encoding: Encoding
    acquisition: str
    """A key of MONTE_CARLO, or CLOSED_FORM."""
    rng: np.random.Generator
    incumbents: Array
    taken: Set[str]
    fixed: Mapping[str, Any]
    found: list[Scored] = field(default_factory=list)

    @property
    def is_closed_form(self) -> bool:
        return self.acquisition == CLOSED_FORM


class SearchedAcquisition(Acquisition):
    """Ax's acquisition with our optimiser; takes its SearchPlan from the option `plan`."""

    @property
    def plan(self) -> SearchPlan:
        plan: SearchPlan = self.options["plan"]
        return plan

    def _instantiate_acquisition(self) -> None:
        if self.plan.is_closed_form:
            # no qLogNEI is set up only to be ignored
            self.acqf: Any = None
            self.models_used = [self.surrogate.model_name_by_metric]
            self.acq_function_sequence = None
            return
        name = self.plan.acquisition
        options, kind = dict(ACQUISITION_OPTIONS.get(name, {})), MONTE_CARLO[name]
        sampler = member_sampler(self.surrogate.model, seed=int(self.plan.rng.integers(2**31)))
        if sampler is not None and name in MEMBERWISE:
            options, kind = options | {"sampler": sampler}, MEMBERWISE[name]
        # the choice is made where the study is known; Ax's default would override it
        self.botorch_acqf_classes_with_options = [(kind, options)]
        super()._instantiate_acquisition()

    def optimize(self, n: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Up to `n` distinct configurations, one after the other, each knowing those before it.

        Grids, conditions, mixtures and linear constraints come from the plan's encoding. Fewer than `n` rows
        where the space has nothing left.
        """
        del args, kwargs
        plan = self.plan
        taken = set(plan.taken)
        pending = self.X_pending
        for _ in range(n):
            value, value_and_gradient = self._functions()
            ranked = maximise(
                value,
                value_and_gradient,
                plan.encoding,
                rng=plan.rng,
                incumbents=plan.incumbents,
                evaluated=taken,
                fixed=plan.fixed,
                effort=None if plan.is_closed_form else MONTE_CARLO_EFFORT,
            )
            if not ranked:
                break
            best = ranked[0]
            plan.found.append(best)
            taken.add(plan.encoding.space.key(best.configuration))
            row = torch.as_tensor(best.features, dtype=torch.float64)[None, :]
            pending = row if pending is None else torch.cat([pending, row])
            if len(plan.found) < n:
                self.acqf.set_X_pending(pending)
        rows = [torch.as_tensor(s.features, dtype=torch.float64) for s in plan.found]
        values = torch.tensor([s.value for s in plan.found], dtype=torch.float64)
        shape = (0, plan.encoding.n_features)
        return (torch.stack(rows) if rows else torch.zeros(shape)), values, torch.ones(len(rows))

    def _functions(self) -> tuple[ValueOf, ValueAndGradient]:
        if self.plan.is_closed_form:
            model = self.surrogate.model
            assert isinstance(model, ClosedForm)
            return closed_form_log_ei(model.core)
        return autograd_functions(self.acqf)


def closed_form_log_ei(posterior: Posterior) -> tuple[ValueOf, ValueAndGradient]:
    """Log EI by formula, over the best posterior mean at an observed point: noise alone makes no incumbent."""
    best = float(posterior.predict(posterior.X)[0].max())

    def value(x: Array) -> Array:
        return log_ei(*posterior.predict(x), best)

    def value_and_gradient(x: Array) -> tuple[Array, Array]:
        return log_ei_with_gradient(*posterior.predict_with_gradients(x), best)

    return value, value_and_gradient


def autograd_functions(acquisition: Callable[[Tensor], Tensor]) -> tuple[ValueOf, ValueAndGradient]:
    """A BoTorch acquisition as functions of rows (n, d), by autograd."""

    def value(x: Array) -> Array:
        with torch.no_grad():
            parts = [
                acquisition(torch.as_tensor(x[i : i + EVALUATION_CHUNK])[:, None, :])
                for i in range(0, len(x), EVALUATION_CHUNK)
            ]
        result: Array = torch.cat(parts).numpy()
        return result

    def value_and_gradient(x: Array) -> tuple[Array, Array]:
        rows = torch.as_tensor(x).clone().requires_grad_()
        values = acquisition(rows[:, None, :])
        (gradient,) = torch.autograd.grad(values.sum(), rows)
        return values.detach().numpy(), gradient.numpy()

    return value, value_and_gradient
