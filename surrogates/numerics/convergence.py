"""Have the chains converged: split R-hat and effective sample size of scalar summaries.

Gelman et al. 2013, "Bayesian Data Analysis", section 11.4 and 11.5; Geyer 1992 for the initial positive sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor


def split_r_hat(draws: Tensor) -> Tensor:
    """Potential scale reduction (k,) of draws (chains, n, k), each chain halved; 1 where nothing varies."""
    n = draws.shape[1] // 2
    halves = torch.cat([draws[:, :n], draws[:, -n:]]).double()
    within = halves.var(dim=1).mean(0)
    between = halves.mean(1).var(dim=0)
    ratio = ((n - 1) / n * within + between) / within
    return torch.where(within > 0, ratio, torch.where(between > 0, torch.inf, 1.0)).sqrt()


def effective_sample_size(draws: Tensor) -> Tensor:
    """Independent draws that would say as much, (k,), of draws (chains, n, k); all of them where nothing varies."""
    x = draws.double()
    n_chains, n, _ = x.shape
    centred = x - x.mean(1, keepdim=True)
    # autocovariances of every chain by the fast Fourier transform
    spectrum = torch.fft.rfft(centred, n=2 * n, dim=1)
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * n, dim=1)[:, :n] / n
    within = (covariance[:, 0] * n / (n - 1)).mean(0)
    between = x.mean(1).var(dim=0) if n_chains > 1 else torch.zeros_like(within)
    total = within * (n - 1) / n + between
    rho = 1.0 - (within - covariance.mean(0)) / total
    n_pairs = n // 2
    pairs = rho[: 2 * n_pairs].reshape(n_pairs, 2, -1).sum(1)
    # the sums of pairs are positive and falling for a reversible chain: noise beyond their first fall is cut
    positive = torch.cumprod((pairs > 0).to(pairs), dim=0)
    falling = torch.cummin(pairs, dim=0).values
    time = 2.0 * (falling * positive).sum(0) - 1.0
    found = n_chains * n / time.clamp_min(1.0 / n)
    return torch.where(total > 0, found, torch.full_like(found, float(n_chains * n)))
