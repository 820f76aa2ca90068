"""Bayesian neural networks, finite and infinite."""
