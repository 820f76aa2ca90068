"""Does a deep kernel machine predict better than the infinitely wide network that it starts from?

Yang et al. 2021, "A theory of representation learning gives a deep generalisation of kernel methods" (arXiv
2108.13097). The Gram matrices G_l of the hidden layers are free parameters that maximise

    log N(y | 0, s^2 R(G_L) + s_n^2 I) - sum_l nu KL(N(0, G_l) || N(0, K(G_{l-1}))),

with K the covariance of a wide layer and R the last one, normalised to unit diagonal as in the `nngp` surrogate, whose
scales are taken over. With nu large G_l = K(G_{l-1}) and the machine is that surrogate; at any nu its objective is at
least the evidence of that surrogate, so what has to be better are predictions. G_l = C (B B^T) C^T with C C^T =
K(G_{l-1}), so that the divergence is one of B alone; B starts at I. Test points follow layer by layer, given G_l.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fit_process import data_of
from scoring import NormalMixture, scores
from torch import Tensor

from surrogates.bnn.kernel_fit import KernelFit
from surrogates.bnn.kernels import NetworkKernel
from surrogates.numerics.collapsed import LogNormal
from surrogates.numerics.networks import group_of_columns
from surrogates.numerics.nngp import expected_product

JITTER = 1e-8


@dataclass(frozen=True)
class Scales:
    """Of a fitted infinitely wide network."""

    weight: Tensor
    bias: Tensor
    output: Tensor
    noise: Tensor
    activation: Any

    def layer(self, g: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """K(G): s_b^2 + s_w^2 E[phi phi']."""
        return self.bias + self.weight * expected_product(g, left, right, self.activation)


@dataclass(frozen=True)
class Inputs:
    """Rows with relevances, and the covariance of the first layer's inputs."""

    X: Tensor
    scales: Scales

    def first(self, left: Tensor, right: Tensor) -> Tensor:
        return self.scales.bias + self.scales.weight * left @ right.T / left.shape[1]

    def variance(self, rows: Tensor) -> Tensor:
        return self.scales.bias + self.scales.weight * rows.square().sum(-1) / rows.shape[1]


def grams(inputs: Inputs, B: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For each hidden layer but the last, K(G_{l-1}) (n, n) and G_l; B (L - 1, n, n) lower triangular."""
    G = inputs.first(inputs.X, inputs.X)
    for factor in B:
        diagonal = G.diagonal()
        K = inputs.scales.layer(G, diagonal[:, None], diagonal[None, :])
        K = K + JITTER * K.diagonal().mean() * torch.eye(len(K), dtype=K.dtype)
        half = torch.linalg.cholesky(K) @ factor.tril()
        G = half @ half.T
        yield K, G


def output_covariance(scales: Scales, G: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The last layer, normalised to unit diagonal, times the output scale."""
    R = expected_product(G, left, right, scales.activation)
    norms = expected_product(left, left, left, scales.activation)
    others = expected_product(right, right, right, scales.activation)
    return scales.output * R / (norms * others).sqrt()


def objective(inputs: Inputs, B: Tensor, y: Tensor, nu: float) -> tuple[Tensor, Tensor]:
    """The objective (), and the log evidence of the data in it."""
    G = inputs.first(inputs.X, inputs.X)
    for _, G in grams(inputs, B):  # noqa: B007  the last one is wanted
        pass
    diagonal = G.diagonal()
    K = output_covariance(inputs.scales, G, diagonal[:, None], diagonal[None, :])
    L = torch.linalg.cholesky(K + inputs.scales.noise * torch.eye(len(y), dtype=y.dtype))
    half = torch.linalg.solve_triangular(L, y[:, None], upper=False)
    evidence = -0.5 * half.square().sum() - L.diagonal().log().sum() - 0.5 * len(y) * math.log(2 * math.pi)
    lower = B.tril()
    divergence = 0.5 * (lower.square().sum() - B.shape[0] * len(y))
    divergence = divergence - lower.diagonal(dim1=-2, dim2=-1).abs().log().sum()
    return evidence - nu * divergence, evidence


def learned(inputs: Inputs, y: Tensor, depth: int, nu: float, n_steps: int) -> Tensor:
    """B (L - 1, n, n) of the highest objective found by L-BFGS from the infinitely wide network."""
    B = torch.eye(len(y), dtype=y.dtype).repeat(depth - 1, 1, 1).requires_grad_()
    optimiser = torch.optim.LBFGS([B], max_iter=n_steps, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        # in nats of the stiffest term, so that a unit step is neither huge nor tiny at any nu
        loss = -objective(inputs, B, y, nu)[0] / max(nu, 1.0)
        loss.backward()
        return loss

    optimiser.step(closure)
    return B.detach()


def predicted(inputs: Inputs, B: Tensor, y: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the latent function at rows X (m, d), layer by layer given the Gram matrices."""
    scales = inputs.scales
    G, cross, own = inputs.first(inputs.X, inputs.X), inputs.first(X, inputs.X), inputs.variance(X)
    for K, G_next in grams(inputs, B):
        diagonal = G.diagonal()
        k = scales.layer(cross, own[:, None], diagonal[None, :])
        k_own = scales.layer(own, own, own)
        solved = torch.linalg.solve(K, k.T).T
        cross = solved @ G_next
        own = k_own - (solved * k).sum(-1) + (solved * cross).sum(-1)
        G = G_next
    diagonal = G.diagonal()
    K = output_covariance(scales, G, diagonal[:, None], diagonal[None, :])
    k = output_covariance(scales, cross, own[:, None], diagonal[None, :])
    solved = torch.linalg.solve(K + scales.noise * torch.eye(len(y), dtype=y.dtype), k.T).T
    return solved @ y, scales.output - (solved * k).sum(-1)


def compared(problem: str, n: int, seed: int, nus: list[float], n_steps: int) -> Iterator[dict[str, Any]]:
    """Scores of the machine for each nu, under the scales of the `nngp` surrogate."""
    data = data_of(problem, n, seed)
    X, test = torch.as_tensor(data.train_X), torch.as_tensor(data.test_X)
    y = torch.as_tensor(data.train_y)
    kernel = NetworkKernel(data.encoding.groups, 3, "erf", has_relevances=True)
    process = KernelFit(X, y, torch.zeros_like(y), kernel=kernel, noise=LogNormal(-6.0, 1.0))
    process.fit([torch.zeros(process.n_coordinates)], limit=n, generator=torch.Generator().manual_seed(seed))
    u = process.coordinates
    relevance = kernel.relevance(u[3:-1])[group_of_columns(kernel.groups)]
    scales = Scales(kernel.weight(u[0]), kernel.bias(u[1]), kernel.output(u[2]), process.noise(u), "erf")
    inputs = Inputs((2 * X - 1) * relevance, scales)
    residual = process.given.residual
    with torch.no_grad():
        mean, covariance = process.moments(test)
        evidence = process.given.log_evidence
    yield _record("nngp", evidence, evidence, mean, covariance.diagonal(), scales, data.test_y)
    for nu in nus:
        B = learned(inputs, residual, kernel.depth, nu, n_steps)
        with torch.no_grad():
            reached, evidence = objective(inputs, B, residual, nu)
            mean, variance = predicted(inputs, B, residual, (2 * test - 1) * relevance)
        mean = mean + process.given.constant
        yield _record(f"{nu:g}", reached, evidence, mean, variance, scales, data.test_y)


def _record(
    name: str,
    reached: Tensor,
    evidence: Tensor,
    mean: Tensor,
    variance: Tensor,
    scales: Scales,
    truth: Any,
) -> dict[str, Any]:
    sd = (variance.clamp_min(0.0) + scales.noise).sqrt()
    mixture = NormalMixture(mean.numpy()[None], sd.numpy()[None], np.ones(1))
    found = {"nu": name, "objective": float(reached), "log_evidence": float(evidence)}
    return found | scores(mixture, truth)


def main() -> None:
    """The table, a mean over seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", nargs="+", default=["poly200", "hartmann6", "ackley10"])
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nu", nargs="+", type=float, default=[1e6, 1000.0, 300.0, 100.0, 10.0, 1.0])
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| problem | nu | objective | log evidence | RMSE | NLL | 80 % |\n|---|---|---|---|---|---|---|")
    for problem in options.problems:
        runs = [
            list(compared(problem, options.n, seed, options.nu, options.steps))
            for seed in range(options.seeds)
        ]
        for rows in zip(*runs, strict=True):
            means = {k: np.mean([row[k] for row in rows]) for k in rows[0] if k != "nu"}
            print(
                f"| {problem} | {rows[0]['nu']} | {means['objective']:.1f} | {means['log_evidence']:.1f} |"
                f" {means['rmse']:.3f} | {means['nll']:.3f} | {100 * means['coverage_80']:.0f} |",
                flush=True,
            )
        print(f"{problem}: done", file=sys.stderr)


if __name__ == "__main__":
    main()
