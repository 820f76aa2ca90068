"""A surrogate that is another one: whichever predicts the study's own observations best, or a weighted few.

Every candidate predicts each fold of the observations from the others; the score is the mean log predictive density
of the posterior as it is (a mixture, where it is one) and the model's noise. `choose` takes the best candidate that is
significantly better than the first (`gp`), by a paired t-test at 5 % for all rivals together, else the first; `average`
takes stacking weights (Yao et al. 2018). The choice is kept with the state and made anew once the observations have
grown enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from pydantic import BaseModel
from torch import Tensor

from surrogates.auto.comparison import FAILURES, MIN_TO_COMPARE, Comparison, compare
from surrogates.auto.options import AutoOptions
from surrogates.averaged import AveragedPosterior
from surrogates.errors import NotEnoughData
from surrogates.members import checked
from surrogates.numerics.exact_gp import Posterior as ClosedFormPosterior
from surrogates.protocol import DRAWS, BuildRequest
from surrogates.registry import plugin as find_plugin

PART: Final = "part"


class ChosenSurrogate(Model):
    """One outcome; see AutoOptions. After the fit, `weights` are those of the surrogates taken."""

    def __init__(self, request: BuildRequest) -> None:
        checked(request)
        super().__init__()
        assert isinstance(request.options, AutoOptions)
        self.options = request.options
        self.request = request
        self.train_inputs = (request.train_X,)
        self.train_targets = request.train_Y[:, 0]
        self._parts: dict[str, Any] = {}
        self.weights: dict[str, float] = {}
        self.rungs: list[str] = []
        self._n_chosen_at = 0
        self._why: dict[str, Any] = {}
        self._candidate_options = {name: self._validated(name) for name in self.options.candidates}

    def _validated(self, name: str) -> BaseModel:
        options = find_plugin(name).options
        given = self.options.candidate_options.get(name, {})
        shared = self.options.model_dump(include={"device", "dtype"} & self.options.model_fields_set)
        known = {key: value for key, value in shared.items() if key in options.model_fields}
        return options.model_validate(known | given)

    @property
    def num_outputs(self) -> int:
        return 1

    @property
    def batch_shape(self) -> torch.Size:
        return torch.Size()

    def fit(self, generator: torch.Generator) -> None:
        """Choose, or keep to the last choice, and fit what is chosen. Raises what the first candidate's fit raises."""
        weights = self._kept_choice()
        if weights is None:
            weights = self._choice(generator)
        parts: dict[str, Any] = {}
        for name in weights:
            try:
                parts[name] = self._fitted(name, generator)
            except FAILURES as error:
                if name == self.options.candidates[0]:
                    raise
                self.rungs.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        if not parts:
            first = self.options.candidates[0]
            parts, weights = {first: self._fitted(first, generator)}, {first: 1.0}
        self._adopt(parts, {name: weights[name] for name in parts})

    def _adopt(self, parts: Mapping[str, Any], weights: Mapping[str, float]) -> None:
        total = sum(weights.values())
        self.weights = {name: weight / total for name, weight in weights.items()}
        self._parts = dict(parts)
        # registered, so that whoever asks where the model lies is told
        self.modules_of_parts = torch.nn.ModuleList(parts.values())
        for name, part in parts.items():
            self.rungs += [f"{name}: {rung}" for rung in getattr(part, "rungs", [])]
        self.eval()

    def _kept_choice(self) -> dict[str, float] | None:
        """The last fit's weights, while its observations are not outgrown and its candidates still the options'."""
        warm = self.request.warm or {}
        if "choice.n" not in warm:
            return None
        weights = _weights(warm)
        n_then = int(warm["choice.n"])
        if len(self.request.train_X) >= self.options.regrowth * n_then or n_then < MIN_TO_COMPARE:
            return None
        if not weights or not set(weights) <= set(self.options.candidates):
            return None
        self._n_chosen_at = n_then
        self._why = {"chosen_at": n_then, "because": "the choice is kept until the observations have grown"}
        return weights

    def _choice(self, generator: torch.Generator) -> dict[str, float]:
        n, first = len(self.request.train_X), self.options.candidates[0]
        self._n_chosen_at = n
        if n < MIN_TO_COMPARE or len(self.options.candidates) == 1:
            self._why = {"chosen_at": n, "because": "there is nothing to compare yet"}
            return {first: 1.0}
        compared = compare(
            self.request,
            self.options.candidates,
            self._candidate_options,
            n_folds=self.options.n_folds,
            max_compared=self.options.max_compared,
            budget_seconds=self.options.budget_seconds,
            generator=generator,
        )
        weights = compared.weights() if self.options.combine == "average" else {compared.chosen(): 1.0}
        self._why = _reasons(compared, n) | {"because": _because(compared, weights)}
        return weights

    def _fitted(self, name: str, generator: torch.Generator) -> Any:
        prefix = f"{name}."
        warm = {
            k.removeprefix(prefix): v for k, v in (self.request.warm or {}).items() if k.startswith(prefix)
        }
        model: Any = self._built(name, warm or None)
        model.fit(generator)
        return model

    def _built(self, name: str, warm: Mapping[str, Tensor] | None) -> Any:
        return find_plugin(name).build(
            replace(self.request, options=self._candidate_options[name], warm=warm)
        )

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,  # noqa: FBT001, FBT002  BoTorch's signature
        posterior_transform: PosteriorTransform | None = None,
    ) -> Any:
        """The chosen surrogate's posterior at X (..., q, d), or the mixture of several. Raises: NotEnoughData."""
        if not self._parts:
            raise NotEnoughData("fit the model first")
        found = [
            part.posterior(
                X,
                output_indices=output_indices,
                observation_noise=observation_noise,
                posterior_transform=posterior_transform,
            )
            for part in self._parts.values()
        ]
        return found[0] if len(found) == 1 else AveragedPosterior(found, list(self.weights.values()))

    @property
    def settled(self) -> Model | None:
        """The one surrogate chosen; None where there are several."""
        return next(iter(self._parts.values())) if len(self._parts) == 1 else None

    @property
    def core(self) -> ClosedFormPosterior:
        """The closed form of the one surrogate chosen. Raises: AttributeError where it has none."""
        found: ClosedFormPosterior = self.settled.core  # type: ignore[union-attr]
        return found

    def state(self) -> dict[str, Tensor]:
        """The choice, and the states of what was chosen under its name."""
        found = {"choice.n": torch.tensor(self._n_chosen_at, dtype=torch.int64)}
        for name, part in self._parts.items():
            found[f"choice.weight.{name}"] = torch.tensor(self.weights[name], dtype=torch.float64)
            for key, value in part.state().items():
                draws, plain = key.startswith(DRAWS), key.removeprefix(DRAWS)
                found[f"{DRAWS}{name}.{plain}" if draws else f"{name}.{key}"] = value
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Build what was chosen and give it its state."""
        weights = _weights(state)
        parts: dict[str, Any] = {}
        for name in weights:
            part = self._built(name, None)
            own = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
            draws = f"{DRAWS}{name}."
            own |= {DRAWS + k.removeprefix(draws): v for k, v in state.items() if k.startswith(draws)}
            part.load_state(own)
            parts[name] = part
        self._n_chosen_at = int(state["choice.n"])
        self._adopt(parts, weights)

    def noise_variance(self) -> Tensor:
        """(1,), the weighted mean of what the parts have learned."""
        return torch.stack([self.weights[n] * p.noise_variance() for n, p in self._parts.items()]).sum(0)

    def figures(self) -> dict[str, Any]:
        """What was compared and why this was chosen, and what the parts say of themselves."""
        parts = {name: part.figures() for name, part in self._parts.items() if hasattr(part, "figures")}
        return {"choice": {"weights": self.weights, **self._why}, "parts": parts}


def _weights(state: Mapping[str, Tensor]) -> dict[str, float]:
    prefix = "choice.weight."
    return {key.removeprefix(prefix): float(value) for key, value in state.items() if key.startswith(prefix)}


def _reasons(compared: Comparison, n: int) -> dict[str, Any]:
    return {
        "chosen_at": n,
        "log_density": dict(zip(compared.names, compared.log_densities.mean(axis=0).tolist(), strict=True)),
        "better_than_first": {
            name: {"mean": mean, "standard_error": se} for name, (mean, se) in compared.differences().items()
        },
        "sure": compared.sure,
        "left_out": dict(compared.left_out),
    }


def _because(compared: Comparison, weights: Mapping[str, float]) -> str:
    """The choice in a sentence."""
    first = compared.names[0]
    if len(weights) > 1:
        return "this average predicts the observations best"
    (chosen,) = weights
    if len(compared.names) == 1:
        return f"only {first} could be compared"
    if chosen == first:
        return f"none of the others predicts better than {first} beyond doubt"
    gain, se = compared.differences()[chosen]
    return f"{chosen} predicts better than {first}, by {gain:.2f} +- {se:.2f} nats an observation"
