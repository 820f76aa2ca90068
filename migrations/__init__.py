"""Alembic migrations; `0001_create_tables` is the first release."""

VERSION_TABLE = "bo_service_version"
"""A name of our own, so that the database may be shared with another project's migrations."""
