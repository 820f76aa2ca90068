"""A Bayesian optimization service with pluggable surrogates."""

__version__ = "0.1.0"
