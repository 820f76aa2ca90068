"""Expand: studies may push their trials to a fleet; what is announced to it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

PUSHED = sa.text("is_pushed AND state = 'ACTIVE'")


def upgrade() -> None:
    """No study so far pushes anything."""
    op.add_column("studies", sa.Column("is_pushed", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index("ix_studies_pushed", "studies", ["id"], sqlite_where=PUSHED, postgresql_where=PUSHED)
    op.create_table(
        "pushes",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("study_id", sa.String(length=36), nullable=False),
        sa.Column("trial_id", sa.String(length=36), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"], ["studies.id"], name=op.f("fk_pushes_study_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pushes")),
    )
    op.create_index("ix_pushes_study_id", "pushes", ["study_id"])


def downgrade() -> None:
    """What was announced finds nothing; trials that run go on. Specifications lose their policy."""
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    without = "json_remove(spec, '$.push')" if is_sqlite else "spec - 'push'"
    # also where it is null: versions before refuse fields they do not know
    op.execute(f"UPDATE studies SET spec = {without}")  # noqa: S608  words of our own
    op.drop_table("pushes")
    op.drop_index("ix_studies_pushed", table_name="studies")
    with op.batch_alter_table("studies") as batch:
        batch.drop_column("is_pushed")
