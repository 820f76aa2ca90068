"""Gaussian processes with other priors and with warped inputs, fitted by BoTorch instead of by the closed form.

The warp is x -> 1 - (1 - x^a)^b by number, log a and log b ~ N(0, 0.75) (Snoek et al. 2014, arXiv:1402.0929).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from botorch.exceptions.errors import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms.input import Warp
from botorch.utils.sampling import manual_seed
from gpytorch.kernels import ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import LogNormalPrior
from linear_operator.utils.errors import NotPSDError
from torch import Tensor

from surrogates.compute import device_of, dtype_of
from surrogates.errors import FitDiverged
from surrogates.gp.model import noise_prior
from surrogates.gp.options import GpOptions
from surrogates.gp.placed import Placed, chosen_precision
from surrogates.gp.priors import MODULES, noise_floor
from surrogates.members import checked
from surrogates.numerics.fit_rows import fit_rows
from surrogates.protocol import BuildRequest

WARP_SD: Final = 0.75**0.5


class VariantGP(Placed, SingleTaskGP):
    """One outcome; see GpOptions."""

    def __init__(self, request: BuildRequest) -> None:
        assert isinstance(request.options, GpOptions)
        checked(request)
        place = torch.zeros(
            (), device=device_of(request.options, request.device), dtype=dtype_of(request.options)
        )
        X, Y = request.train_X.to(place), request.train_Y.to(place)
        known = None if request.train_Yvar is None else request.train_Yvar.to(place).clamp_min(noise_floor(X))
        noise = noise_prior(request.options.noise, has_variances=known is not None)
        modules = MODULES[request.options.prior](X, request.encoding.groups, noise)
        with chosen_precision():
            super().__init__(
                train_X=X,
                train_Y=Y,
                train_Yvar=known,
                likelihood=modules.likelihood if known is None else None,
                covar_module=modules.kernel,
                mean_module=modules.mean,
                outcome_transform=None,
                input_transform=warp_of(request) if request.options.warp else None,
            )
        self.to(place)
        self.request, self.options = request, request.options
        self.rungs: list[str] = []

    def fit(self, generator: torch.Generator) -> None:
        """MAP hyperparameters from the warm start, the prior's start, then starts drawn from the prior.

        On at most `fit_points` observations. Raises: FitDiverged.
        """
        seed = int(torch.randint(2**31, (1,), generator=generator))
        outputs = self.request.train_Y[:, 0].double().cpu().numpy()
        rows = fit_rows(outputs, self.options.fit_points, np.random.default_rng(seed))
        if len(rows) < len(outputs):
            chosen = torch.as_tensor(rows)
            request = self.request
            known = None if request.train_Yvar is None else request.train_Yvar[chosen]
            small = VariantGP(
                replace(
                    request,
                    train_X=request.train_X[chosen],
                    train_Y=request.train_Y[chosen],
                    train_Yvar=known,
                )
            )
            small.climb(seed)
            self.rungs += small.rungs
            self.load_state(small.state())
        else:
            self.climb(seed)

    def climb(self, seed: int) -> None:
        """Fit on all of this model's data. Raises: FitDiverged."""
        start = self.state()
        warm = self._warm_start()
        rungs = [("warm", warm, 1)] if warm is not None else []
        rungs += [("start", start, 1), ("drawn starts", start, 5)]
        for name, state, n_attempts in rungs:
            self.load_state(state)
            try:
                with manual_seed(seed), torch.enable_grad():
                    fit_gpytorch_mll(
                        ExactMarginalLogLikelihood(self.likelihood, self), max_attempts=n_attempts
                    )
                self.load_state(self.state())
            except (ModelFittingError, NotPSDError) as error:
                self.rungs.append(f"{name}: {type(error).__name__}")
                continue
            if all(torch.isfinite(value).all() for value in self.state().values()):
                return
            self.rungs.append(f"{name}: not finite")
        raise FitDiverged("no start led to finite hyperparameters")

    def _warm_start(self) -> Mapping[str, Tensor] | None:
        warm = self.request.warm or {}
        shapes = {name: value.shape for name, value in self.state().items()}
        fits = shapes.keys() == warm.keys() and all(warm[name].shape == shapes[name] for name in shapes)
        return warm if fits else None

    def state(self) -> dict[str, Tensor]:
        """Every hyperparameter by its name in the model, unconstrained as BoTorch holds it."""
        return {name: value.detach().cpu().clone() for name, value in self.named_parameters()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take hyperparameters over and condition on this model's data."""
        # only from training mode does evaluation forget what was computed before
        self.train()
        with torch.no_grad():
            for name, value in self.named_parameters():
                value.copy_(state[name])
        self.eval()

    def noise_variance(self) -> Tensor:
        """(1,), the learned noise variance; 0 where the observations' own variances are known."""
        if self.request.train_Yvar is not None:
            return torch.zeros(1, dtype=torch.float64)
        return self.likelihood.noise.detach().double().cpu().reshape(1)

    def figures(self) -> dict[str, Any]:
        """Lengthscales and warps by feature, output scale and noise."""
        names = self.request.encoding.names
        kernel = self.covar_module
        matern = kernel.base_kernel if isinstance(kernel, ScaleKernel) else kernel
        scale = float(kernel.outputscale.detach()) if isinstance(kernel, ScaleKernel) else 1.0
        figures: dict[str, Any] = {
            "lengthscales": dict(zip(names, matern.lengthscale.detach().reshape(-1).tolist(), strict=True)),
            "output_scale": scale,
            "noise_variance": float(self.noise_variance()[0]),
        }
        if isinstance(warp := getattr(self, "input_transform", None), CubeWarp):
            exponents = torch.stack([warp.concentration1, warp.concentration0], dim=-1).detach().tolist()
            figures["warps"] = dict(zip([names[i] for i in warp.indices.tolist()], exponents, strict=True))
        return figures


class CubeWarp(Warp):
    """BoTorch's warp in [0, 1], continued by steps as long as x's own outside, where x^a is no number."""

    def __init__(self, d: int, indices: list[int]) -> None:
        bounds = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, d)
        super().__init__(d=d, indices=indices, bounds=bounds)
        # BoTorch's own closures have no names, and cannot be pickled
        for i in (0, 1):
            name = f"concentration{i}"
            closures = partial(_concentration, i), partial(_set_concentration, i)
            self.register_prior(f"{name}_prior", LogNormalPrior(0.0, WARP_SD), *closures)

    def _transform(self, X: Tensor) -> Tensor:
        inside = X.clamp(0.0, 1.0)
        return super()._transform(inside) + (X - inside)


def _concentration(i: int, warp: Warp) -> Tensor:
    found: Tensor = getattr(warp, f"concentration{i}")
    return found


def _set_concentration(i: int, warp: Warp, value: Tensor) -> None:
    warp._set_concentration(i=i, value=value)  # noqa: SLF001  as BoTorch's closures do


def warp_of(request: BuildRequest) -> CubeWarp | None:
    """A warp for each number of the encoding; None where there are only categories."""
    numbers = [group[0] for group in request.encoding.groups if len(group) == 1]
    if not numbers:
        return None
    return CubeWarp(request.train_X.shape[-1], numbers)
