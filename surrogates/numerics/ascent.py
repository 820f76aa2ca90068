"""Training of a stack of models by Adam, up to the step where what was held out of each is predicted best.

Kingma and Ba 2015, "Adam: a method for stochastic optimization", algorithm 1, with a rate that falls to nothing along
a cosine. Each model leaves out another part of the data, so that the step is chosen on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from surrogates.numerics.hmc import LogDensity

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
RATE: Final = 0.02
"""In whitened coordinates, whose prior standard deviation is 1."""

EVERY: Final = 10
"""Steps between two looks at what was held out."""

PATIENCE: Final = 8
"""Looks without a better one after which training ends."""

LEAST_GAIN: Final = 0.01
"""Nats an observation by which a later step has to predict better: less is noise."""

N_FOLDS: Final = 4
MIN_TO_FOLD: Final = 2 * N_FOLDS
"""With fewer observations nothing is held out."""

HELD_OUT_VARIANCE: Final = 1e8
"""Variance of an observation that is held out."""

MORE_NOISE: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
"""Prior standard deviations of the log noise variance."""


def held_out(n_models: int, n: int, generator: torch.Generator) -> Tensor:
    """(C, n), which observations each model leaves out: one of four random parts in turn, nothing of fewer than eight.

    Where models are a multiple of four, every observation is left out equally often.
    """
    if n < MIN_TO_FOLD:
        return torch.zeros(n_models, n, dtype=torch.bool)
    folds = torch.randperm(n, generator=generator) % N_FOLDS
    return folds == (torch.arange(n_models) % N_FOLDS)[:, None]


def ascended(
    log_density: LogDensity, z: Tensor, score: Callable[[Tensor], Tensor], *, n_steps: int
) -> tuple[Tensor, int, float]:
    """Positions (C, P) on the way up from z (C, P) where the score () is best, that step, and the score."""
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    best, best_step, best_score = z, 0, float(score(z))
    for step in range(1, n_steps + 1):
        _, gradient = log_density(z)
        gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        first = BETA_1 * first + (1 - BETA_1) * gradient
        second = BETA_2 * second + (1 - BETA_2) * gradient.square()
        falling = 0.5 * RATE * (1.0 + math.cos(math.pi * (step - 1) / n_steps))
        ahead = first / (1 - BETA_1**step)
        z = z + falling * ahead / ((second / (1 - BETA_2**step)).sqrt() + EPSILON)
        if step % EVERY == 0:
            reached = float(score(z))
            if reached > best_score + LEAST_GAIN or not math.isfinite(best_score):
                best, best_step, best_score = z, step, reached
            if step - best_step >= PATIENCE * EVERY:
                break
    return best, best_step, best_score


def noise_inflated(z: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Positions (C, P), noise last, with as much more noise as what was held out asks for.

    Few features are sure of themselves between many observations, and only more noise makes them less so.
    """
    tried = [z.clone() for _ in MORE_NOISE]
    for more, moved in zip(MORE_NOISE, tried, strict=True):
        moved[:, -1] += more
    scores = torch.stack([score(moved) for moved in tried])
    return tried[int(scores.argmax())]
