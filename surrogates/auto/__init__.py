"""The surrogate that chooses among surrogates."""
