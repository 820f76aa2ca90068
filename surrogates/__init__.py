"""Surrogate models and the search space they see; runs with torch, botorch and gpytorch alone."""
