"""Fits on a GPU: seconds against observations, width and chains, and what capturing the density in a CUDA graph gains.

Needs torch, botorch and gpytorch only. Without a GPU it says so and measures the CPU.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from typing import Any

import torch
from fits import best, data, fitted

from surrogates.registry import plugin

SIZES = (50, 200, 1000)
WIDTHS = (64, 256, 1024)
CHAINS = (4, 16, 64)


def density(device: str) -> None:
    """Milliseconds of one leapfrog of all chains, launched kernel by kernel and replayed as a graph."""
    print("| points | width | chains | eager ms | graph ms | ratio |\n|---|---|---|---|---|---|")
    for n, width, n_chains in itertools.product(SIZES, WIDTHS, CHAINS):
        model: Any = plugin("hmc").build(data(n, 10, "hmc", {"width": width}, device))
        target = model.target
        z = torch.randn(n_chains, target.n_coordinates, generator=torch.Generator().manual_seed(0)).to(
            target.X
        )
        eager = best(lambda target=target, z=z: [target(z) for _ in range(10)]) / 10
        captured = graph_seconds(target, z) if z.is_cuda else None
        told = "-" if captured is None else f"{1e3 * captured:.2f}"
        ratio = "-" if captured is None else f"{eager / captured:.1f}"
        print(f"| {n} | {width} | {n_chains} | {1e3 * eager:.2f} | {told} | {ratio} |", flush=True)


def graph_seconds(target: Any, z: torch.Tensor) -> float | None:
    """Seconds of one replay; None where an operation cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            target(z)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            target(z)
    except RuntimeError as error:
        print(f"cannot be captured: {str(error)[:160]}")
        return None
    return best(lambda: [graph.replay() for _ in range(10)]) / 10


def fits(device: str) -> None:
    """Seconds of whole fits against the number of observations."""
    print("\n| surrogate | points | seconds |\n|---|---|---|")
    cases = {"gp": {}, "nngp": {}, "ensemble": {}, "hmc": {}, "sgmcmc": {"batch_size": 512}, "svgp": {}}
    for name, options in cases.items():
        for n in SIZES:
            _, seconds = fitted(data(n, 10, name, options, device), name)
            print(f"| {name} | {n} | {seconds:.2f} |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", choices=["density", "fits"])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    device = arguments.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        print("there is no GPU; this is the CPU\n")
        device = "cpu"
    print(f"{torch.cuda.get_device_name(device) if device != 'cpu' else 'CPU'}, torch {torch.__version__}\n")
    for name, part in {"density": density, "fits": fits}.items():
        if arguments.only in (None, name):
            part(device)


if __name__ == "__main__":
    main()
