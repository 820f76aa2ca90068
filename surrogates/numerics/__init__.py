"""Numerical cores that several surrogates share."""
