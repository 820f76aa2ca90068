"""Noisy expected hypervolume improvement without boxes: the same for two objectives and for five.

The volume that objectives y_1..y_n dominate above a reference r is a mean over directions w on the positive part of
the unit sphere (Zhang and Golovin 2020, "Random hypervolume scalarizations for provable multi-objective black box
optimization", lemma 5):

    volume = c_m E_w[max_i s_w(y_i)_+^m],   s_w(y) = min_j (y_j - r_j) / w_j,   c_m = pi^(m/2) / (2^m Gamma(m/2 + 1)).

So a candidate improves it by c_m E_w[(s_w(y)^m - max_i s_w(y_i)^m)_+], and all there is to know of the observations
under a posterior sample is one number a direction. BoTorch's qLogNEHVI (Daulton et al. 2021) cuts the space that is not
dominated into boxes instead, for every sample: exact, and most of the time of a suggestion from three objectives on.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any, Final

import torch
from botorch.acquisition.input_constructors import acqf_input_constructor, construct_inputs_qLogNEHVI
from botorch.acquisition.multi_objective import logei as nehvi
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.exceptions.errors import UnsupportedError
from botorch.utils.objective import compute_feasibility_indicator, compute_smoothed_feasibility_indicator
from botorch.utils.safe_math import logmeanexp
from torch import Tensor
from torch.quasirandom import SobolEngine

# BoTorch would compile a kernel in the middle of the first suggestion for several objectives: 40 s where there is a
# compiler, and a worker killed meanwhile leaves a lock that all later ones wait for without end
nehvi._load_attempted = True  # noqa: SLF001

N_DIRECTIONS: Final = 64
"""Of each posterior sample; every sample has directions of its own."""

TAIL: Final = 1e-9
"""What a candidate on the front counts for: the logarithm has a slope where no sample improves."""

TAIL_LENGTH: Final = 0.1
"""How far below the front half of it is left, model units."""


def directions(n_samples: int, n_directions: int, n_objectives: int) -> Tensor:
    """(S, K, m) unit vectors, quasi-random on the positive part of the sphere, positive in every coordinate."""
    engine = SobolEngine(n_objectives, scramble=True, seed=0)
    uniform = engine.draw(n_samples * n_directions, dtype=torch.float64).clamp(1e-6, 1.0 - 1e-6)
    half_normal = math.sqrt(2.0) * torch.erfinv(uniform)
    return torch.nn.functional.normalize(half_normal, dim=-1).reshape(n_samples, n_directions, n_objectives)


def unit_volume(n_objectives: int) -> float:
    """c_m, the volume of the positive part of the unit ball."""
    half = n_objectives / 2
    return math.pi**half / (2**n_objectives * math.gamma(half + 1))


class ScalarisedLogNEHVI(qLogNoisyExpectedHypervolumeImprovement):
    """qLogNEHVI by scalarisations, for candidates (..., q, d).

    Takes the arguments of BoTorch's; those that are about boxes (`alpha`) and their smoothing (`tau_relu`, `tau_max`)
    change nothing. Values are increments over the pending points.

    Raises: UnsupportedError for a model of several hyperparameter samples, or where increments are not wanted.
    """

    _directions: Tensor
    _reached: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not kwargs.get("incremental_nehvi", True):
            raise UnsupportedError("the improvement is over the pending points, too")
        super().__init__(*args, **kwargs)

    def _set_cell_bounds(self, num_new_points: int) -> None:
        """Draw the objectives of the baseline, and keep the best that they reach in every direction."""
        with torch.no_grad():
            shape = self._default_sample_shape if self.sampler is None else self.sampler.sample_shape
            drawn = directions(shape.numel(), N_DIRECTIONS, len(self.ref_point)).to(self.ref_point)
            self.register_buffer("_directions", drawn)
            self.register_buffer("_reached", drawn.new_zeros(drawn.shape[:2]))
            self.q_in = -1
            if not len(self.X_baseline):
                return
            samples = self._baseline_samples(num_new_points)
            values = self.objective(samples, X=self.X_baseline)
            if values.ndim > 3:
                raise UnsupportedError("one model an outcome, no batch of them")
            feasible = torch.ones_like(values[..., 0], dtype=torch.bool)
            if self.constraints is not None:
                feasible = compute_feasibility_indicator(constraints=self.constraints, samples=samples)
            for value, is_feasible in zip(values.unbind(-2), feasible.unbind(-1), strict=True):
                scalarised = self._scalarised(value[:, None, :])[:, 0]
                self._reached = torch.maximum(
                    self._reached, torch.where(is_feasible[:, None], scalarised, 0.0)
                )

    def _baseline_samples(self, n_new: int) -> Tensor:
        """(S, n, outcomes), from the base samples that candidates are drawn with, too."""
        posterior = self.model.posterior(self.X_baseline)
        if self.base_sampler is None:  # type: ignore[has-type]
            samples = self.get_posterior_samples(posterior)
            self.base_sampler = deepcopy(self.sampler)
        else:
            samples = self.base_sampler(posterior)
        self._set_sampler(q_in=n_new, posterior=posterior)
        if self._cache_root:
            self._baseline_L = self._compute_root_decomposition(posterior=posterior)
        drawn: Tensor = samples
        return drawn

    def _scalarised(self, values: Tensor) -> Tensor:
        """(S, b, m) -> (S, b, K), signed."""
        return ((values - self.ref_point)[:, :, None, :] / self._directions[:, None]).amin(-1)

    def _compute_log_qehvi(self, samples: Tensor, X: Tensor | None = None) -> Tensor:
        """Samples (S, ..., q, m) -> (...), log of the expected improvement by the best of q in every direction."""
        values = self.objective(samples, X=X)
        n_samples, *batch, q, m = values.shape
        scalarised = self._scalarised(values.reshape(n_samples, -1, m))
        before = self._reached[:, None]
        tail = TAIL / (1.0 + (before - scalarised).clamp_min(0.0) / TAIL_LENGTH)
        gain = (scalarised.clamp_min(0.0) ** m - before**m).clamp_min(0.0) + tail
        log_gain = gain.log().reshape(n_samples, *batch, q, -1)
        if self.constraints is not None:
            log_weights = compute_smoothed_feasibility_indicator(
                constraints=self.constraints, samples=samples, eta=self.eta, log=True, fat=self.fat
            )
            log_gain = log_gain + log_weights[..., None]
        best = log_gain.amax(-2)
        return math.log(unit_volume(m)) + logmeanexp(logmeanexp(best, dim=-1), dim=0)


acqf_input_constructor(ScalarisedLogNEHVI)(construct_inputs_qLogNEHVI)
