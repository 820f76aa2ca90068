"""Space-filling without a model: the baseline."""
