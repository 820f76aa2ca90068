"""How long fits take: every surrogate at 100 points in 10 dimensions, chains together and apart, acquisitions.

Needs torch, botorch and gpytorch only (`--device cuda` on a machine with a GPU). Ratios are to something measured in
the same run; each is the best of a few repetitions.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.optim import optimize_acqf

from surrogates.encoding import Encoding
from surrogates.memberwise import MemberwiseLogNEI, member_sampler
from surrogates.numerics.hmc import Chains, transition
from surrogates.parameters import Float
from surrogates.protocol import BuildRequest
from surrogates.registry import plugin, plugins
from surrogates.space import SearchSpace

LARGE_HMC = {"width": 128, "depth": 3}


def data(n: int, d: int, name: str, options: dict[str, Any], device: str) -> BuildRequest:
    """A smooth function with an interaction and some noise, standardised."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, d, generator=generator, dtype=torch.float64)
    y = torch.sin(5 * X[:, :1]) + 2 * X[:, 1:2] ** 2 + X[:, 2:3] * X[:, 3:4] + X.mean(1, keepdim=True)
    y = y + 0.05 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    space = SearchSpace(parameters=tuple(Float(name=f"x{i}", low=0, high=1) for i in range(d)))
    return BuildRequest(
        train_X=X,
        train_Y=(y - y.mean()) / y.std(),
        train_Yvar=None,
        encoding=Encoding(space),
        options=plugin(name).options.model_validate(options),
        device=device,
    )


def fitted(request: BuildRequest, name: str, seed: int = 0) -> tuple[Any, float]:
    """A fitted model, and the seconds it took."""
    started = time.perf_counter()
    model: Any = plugin(name).build(request)
    model.fit(torch.Generator().manual_seed(seed))
    model.posterior(request.train_X[:1]).mean.sum().item()
    return model, time.perf_counter() - started


def best(action: Callable[[], Any], repetitions: int = 3) -> float:
    """Seconds of the fastest of some repetitions, after one that does not count."""
    action()
    found = []
    for _ in range(repetitions):
        started = time.perf_counter()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return min(found)


def every_surrogate(device: str) -> None:
    """Cold and warm fits at n = 100, d = 10."""
    print("| surrogate | cold s | warm s | what the fit says |\n|---|---|---|---|")
    cases = [(name, name, {}) for name in sorted(plugins()) if plugins()[name].abilities.needs_model]
    cases.append(("hmc 3 x 128", "hmc", LARGE_HMC))
    for label, name, options in cases:
        request = data(100, 10, name, options, device)
        fitted(request, name)
        model, cold = fitted(request, name)
        later = replace(data(105, 10, name, options, device), warm=model.state())
        _, warm = fitted(later, name)
        figures = model.figures() if hasattr(model, "figures") else {}
        said = {k: round(v, 3) for k, v in figures.items() if isinstance(v, float | int)}
        print(f"| {label} | {cold:.2f} | {warm:.2f} | {said} |", flush=True)


def chains_together(device: str) -> None:
    """The same leapfrogs for all chains in one tensor, and chain by chain."""
    print("\n| network | points | chains | together ms | one by one ms | ratio |\n|---|---|---|---|---|---|")
    for width, depth, n, n_chains in ((50, 2, 20, 32), (50, 2, 20, 8), (128, 2, 100, 4), (128, 3, 100, 4)):
        model: Any = plugin("hmc").build(data(n, 10, "hmc", {"width": width, "depth": depth}, device))
        target = model.target
        z = torch.randn(n_chains, target.n_coordinates, generator=torch.Generator().manual_seed(0))
        together = Chains.at(z.to(target.X), target)
        apart = [Chains.at(row[None].to(target.X), target) for row in z]

        def moved(chains: Chains, target: Any = target) -> None:
            transition(chains, target, step=1e-3, n_leapfrog=20, generator=torch.Generator().manual_seed(1))

        at_once = best(lambda chains=together: moved(chains))
        in_turn = best(lambda all_chains=apart: [moved(chains) for chains in all_chains])
        print(
            f"| {depth} x {width} | {n} | {n_chains} | {1e3 * at_once / 20:.2f} | {1e3 * in_turn / 20:.2f} "
            f"| {in_turn / at_once:.1f} |",
            flush=True,
        )


def acquisitions(device: str) -> None:
    """Optimising qLogNEI over members and over the Gaussian process, by BoTorch's own optimiser."""
    print("\n| surrogate | observations | qLogNEI optimised s | ratio to gp |\n|---|---|---|---|")
    for n in (30, 100):
        seconds: dict[str, float] = {}
        for name in ("gp", "hmc", "ensemble"):
            request = data(n, 10, name, {}, device)
            model, _ = fitted(request, name)
            sampler = member_sampler(model, seed=0)
            kind = qLogNoisyExpectedImprovement if sampler is None else MemberwiseLogNEI
            acquisition = kind(model, X_baseline=request.train_X, sampler=sampler)
            bounds = torch.tensor([[0.0] * 10, [1.0] * 10], dtype=torch.float64)

            def optimised(acquisition: Any = acquisition, bounds: torch.Tensor = bounds) -> None:
                torch.manual_seed(0)
                # the same number of evaluations for all: no early end
                options = {"maxiter": 30, "ftol": 0.0, "gtol": 0.0}
                optimize_acqf(acquisition, bounds, q=1, num_restarts=4, raw_samples=256, options=options)

            seconds[name] = best(optimised)
            print(f"| {name} | {n} | {seconds[name]:.2f} | {seconds[name] / seconds['gp']:.1f} |", flush=True)


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="torch's name of a device")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["fits", "chains", "acquisitions"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    where = torch.cuda.get_device_name(arguments.device) if arguments.device != "cpu" else "CPU"
    print(f"{where}, {arguments.threads} threads, torch {torch.__version__}\n")
    parts = {"fits": every_surrogate, "chains": chains_together, "acquisitions": acquisitions}
    for name, part in parts.items():
        if arguments.only in (None, name):
            part(arguments.device)


if __name__ == "__main__":
    main()
