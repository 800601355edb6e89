"""The first schema: machine, environment, code, workload, policy, trial, samples."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("machine", "environment"):
        cpu = [sa.Column("cpu", sa.Text, nullable=False)] if name == "machine" else []
        op.create_table(
            name,
            sa.Column("id", sa.String(16), primary_key=True),
            *cpu,
            sa.Column("data", sa.Text, nullable=False),
        )
    op.create_table(
        "kernel_code",
        sa.Column("kernel", sa.String(200), primary_key=True),
        sa.Column("digest", sa.String(16), primary_key=True),
    )
    op.create_table(
        "workload",
        sa.Column("id", sa.String(24), primary_key=True),
        sa.Column("op", sa.String(100), nullable=False),
        sa.Column("data", sa.Text, nullable=False),
    )
    op.create_index("ix_workload_op", "workload", ["op"])
    op.create_table(
        "policy",
        sa.Column("id", sa.String(24), primary_key=True),
        sa.Column("data", sa.Text, nullable=False),
    )
    op.create_table(
        "trial",
        sa.Column("id", sa.String(24), primary_key=True),
        sa.Column("machine_id", sa.String(16), sa.ForeignKey("machine.id"), nullable=False),
        sa.Column("environment_id", sa.String(16), sa.ForeignKey("environment.id"), nullable=False),
        sa.Column("workload_id", sa.String(24), sa.ForeignKey("workload.id"), nullable=False),
        sa.Column("policy_id", sa.String(24), sa.ForeignKey("policy.id"), nullable=False),
        sa.Column("kernel", sa.String(200), nullable=False),
        sa.Column("digest", sa.String(16), nullable=False),
        sa.Column("config", sa.Text, nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("race", sa.String(24), nullable=False),
        sa.Column("ok", sa.Boolean, nullable=False),
        sa.Column("median", sa.Float),
        sa.Column("failure", sa.String(16)),
        sa.Column("reason", sa.Text),
        sa.Column("calls", sa.Integer),
        sa.Column("warnings", sa.Text),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("build_seconds", sa.Float, nullable=False),
        sa.Column("git_commit", sa.String(64), nullable=False),
    )
    op.create_index("trial_known", "trial", ["machine_id", "environment_id", "policy_id", "workload_id"])
    op.create_table(
        "samples",
        sa.Column("trial_id", sa.String(24), sa.ForeignKey("trial.id"), primary_key=True),
        sa.Column("seconds", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    for name in ("samples", "trial", "policy", "workload", "kernel_code", "environment", "machine"):
        op.drop_table(name)
