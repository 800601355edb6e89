"""How many processes the samples of a race come from, and the samples that were taken again."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("trial", sa.Column("processes", sa.Integer))
    op.add_column("trial", sa.Column("disturbed", sa.Text))


def downgrade() -> None:
    op.drop_column("trial", "disturbed")
    op.drop_column("trial", "processes")
