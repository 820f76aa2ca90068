"""From a study's data to candidates; the only place that imports Ax."""
