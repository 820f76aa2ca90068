"""Expand: jobs know their queue, their message and when they are due; curves know their attempt; compute workers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

JSON = sa.JSON().with_variant(JSONB(), "postgresql")

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Jobs that wait stay due, and every value recorded so far belongs to attempt 0: before all others."""
    with op.batch_alter_table("jobs") as batch:
        batch.add_column(sa.Column("queue", sa.String(length=16), nullable=False, server_default="cpu"))
        batch.add_column(sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True))
        batch.add_column(sa.Column("ready_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE jobs SET ready_at = created_at")
    with op.batch_alter_table("jobs") as batch:
        batch.alter_column("ready_at", existing_type=sa.DateTime(timezone=True), nullable=False)
        batch.drop_index("ix_jobs_state_created_at")
        batch.create_index("ix_jobs_state_ready_at", ["state", "ready_at"])
    with op.batch_alter_table("suggestions") as batch:
        batch.drop_index("ix_suggestions_study_id_state_fixed_key")
        batch.create_index("ix_suggestions_take", ["study_id", "state", "fixed_key", "source", "id"])
    op.create_table(
        "compute_workers",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("queues", JSON, nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_compute_workers")),
    )
    with op.batch_alter_table("observations") as batch:
        batch.add_column(sa.Column("attempt", sa.Integer(), nullable=False, server_default="0"))
        batch.drop_constraint("pk_observations", type_="primary")
        batch.create_primary_key("pk_observations", ["trial_id", "metric", "step", "attempt"])


def downgrade() -> None:
    """Of several attempts' values at one step the latest stays."""
    op.execute(
        "DELETE FROM observations WHERE attempt < (SELECT max(o.attempt) FROM observations AS o WHERE"
        " o.trial_id = observations.trial_id AND o.metric = observations.metric AND o.step = observations.step)"
    )
    with op.batch_alter_table("observations") as batch:
        batch.drop_constraint("pk_observations", type_="primary")
        batch.create_primary_key("pk_observations", ["trial_id", "metric", "step"])
        batch.drop_column("attempt")
    op.drop_table("compute_workers")
    with op.batch_alter_table("suggestions") as batch:
        batch.drop_index("ix_suggestions_take")
        batch.create_index(
            "ix_suggestions_study_id_state_fixed_key", ["study_id", "state", "fixed_key", "id"]
        )
    with op.batch_alter_table("jobs") as batch:
        batch.drop_index("ix_jobs_state_ready_at")
        batch.create_index("ix_jobs_state_created_at", ["state", "created_at"])
        batch.drop_column("ready_at")
        batch.drop_column("sent_at")
        batch.drop_column("queue")
