"""The nouns of the service and their transitions; no I/O, no framework but pydantic for the study's schema."""
