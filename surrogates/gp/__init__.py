"""Gaussian processes with a closed-form fit."""
