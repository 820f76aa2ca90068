"""BoTorch's noisy acquisitions over surrogates whose posterior is a set of functions.

A member is a function, so its values at the observed points do not depend on where else it is asked: they are
computed once instead of with every candidate, which is most of the work while a search climbs.
"""

from __future__ import annotations

import torch
from botorch.acquisition.input_constructors import (
    acqf_input_constructor,
    construct_inputs_qLogNEHVI,
    construct_inputs_qLogNEI,
)
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.models.model import Model, ModelList
from botorch.sampling.base import MCSampler
from botorch.sampling.list_sampler import ListSampler
from botorch.utils.transforms import match_batch_shape
from torch import Tensor

from surrogates.hypervolume import ScalarisedLogNEHVI
from surrogates.members import MemberModel, MemberSampler


class MemberwiseLogNEI(qLogNoisyExpectedImprovement):
    """qLogNEI whose baseline is drawn once."""

    def _get_samples_and_objectives(self, X: Tensor) -> tuple[Tensor, Tensor]:
        if self.baseline_samples is None:  # type: ignore[has-type]
            with torch.no_grad():
                self.baseline_samples, self.baseline_obj = self._drawn(self.X_baseline)
        return self._drawn(X)

    def _drawn(self, X: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.model.posterior(X, posterior_transform=self.posterior_transform)
        samples = self.get_posterior_samples(posterior)
        return samples, self.objective(samples, X=X)


class MemberwiseLogNEHVI(ScalarisedLogNEHVI):
    """qLogNEHVI that asks the members at the candidates alone; what the baseline reaches is known."""

    def _compute_posterior_samples_and_concat_pending(self, X: Tensor) -> tuple[Tensor, Tensor]:
        if self.X_pending is not None:
            n_cached = self.X_baseline.shape[-2] - self._X_baseline.shape[-2] if self.cache_pending else 0
            X = torch.cat([X, match_batch_shape(self.X_pending[n_cached:], X)], dim=-2)
        return self.get_posterior_samples(self.model.posterior(X)), X


# their arguments are those of the acquisitions they stand in for
acqf_input_constructor(MemberwiseLogNEI)(construct_inputs_qLogNEI)
acqf_input_constructor(MemberwiseLogNEHVI)(construct_inputs_qLogNEHVI)


def member_sampler(model: Model, *, seed: int) -> MCSampler | None:
    """A sampler that takes every member once, where all of the model's outcomes have the same number of members."""
    models = [_settled(each) for each in (model.models if isinstance(model, ModelList) else [model])]
    if not all(isinstance(each, MemberModel) for each in models):
        return None
    with torch.no_grad():
        sizes = {each.posterior(each.train_inputs[0][:1]).ensemble_size for each in models}
    if len(sizes) > 1:
        return None
    shape = torch.Size([sizes.pop()])
    samplers = [MemberSampler(shape, seed=seed + i) for i in range(len(models))]
    return ListSampler(*samplers) if isinstance(model, ModelList) else samplers[0]


def _settled(model: Model) -> Model:
    """What a surrogate that chooses another has chosen."""
    return getattr(model, "settled", None) or model
