"""Expand: when a job's message is sent again, later each time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What waits is sent once more, which is harmless."""
    op.add_column("jobs", sa.Column("resend_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """The time of the last message stays."""
    with op.batch_alter_table("jobs") as batch:
        batch.drop_column("resend_at")
