"""Infinitely wide Bayesian network: a Gaussian process whose covariance is that of a deep network.

Lee et al. 2018, "Deep neural networks as Gaussian processes"; Li, Rudner and Wilson 2023 for its use here. Inputs
are centred to [-1, 1] and the covariance is normalised to unit diagonal, times an output scale: un-normalised, the
prior's variance grows with depth by orders of magnitude and every interval is too wide.
"""

from __future__ import annotations

from surrogates.bnn.kernel_gp import KernelGP
from surrogates.bnn.kernels import NetworkKernel
from surrogates.bnn.options import NngpOptions
from surrogates.bnn.priors import noise_prior
from surrogates.compute import dtype_of
from surrogates.protocol import BuildRequest


class InfiniteNetwork(KernelGP):
    """One outcome; see NngpOptions."""

    def __init__(self, request: BuildRequest) -> None:
        assert isinstance(request.options, NngpOptions)
        options = request.options
        kernel = NetworkKernel(
            request.encoding.groups, options.depth, options.activation, options.ard, dtype_of(options)
        )
        super().__init__(request, kernel, noise_prior(request), limit=options.fit_points)
