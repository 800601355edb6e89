"""The database's tables, in normal form; every id is a digest of the content, so merging two databases commutes."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

machine = Table(
    "machine",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("cpu", Text, nullable=False),
    Column("data", Text, nullable=False),
)

environment = Table(
    "environment",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("data", Text, nullable=False),
)

kernel_code = Table(
    "kernel_code",
    metadata,
    Column("kernel", String(200), primary_key=True),
    Column("digest", String(16), primary_key=True),
)

workload = Table(
    "workload",
    metadata,
    Column("id", String(24), primary_key=True),
    Column("op", String(100), nullable=False, index=True),
    Column("data", Text, nullable=False),
)

policy = Table(
    "policy",
    metadata,
    Column("id", String(24), primary_key=True),
    Column("data", Text, nullable=False),
)

trial = Table(
    "trial",
    metadata,
    Column("id", String(24), primary_key=True),
    Column("machine_id", ForeignKey("machine.id"), nullable=False),
    Column("environment_id", ForeignKey("environment.id"), nullable=False),
    Column("workload_id", ForeignKey("workload.id"), nullable=False),
    Column("policy_id", ForeignKey("policy.id"), nullable=False),
    Column("kernel", String(200), nullable=False),
    Column("digest", String(16), nullable=False),
    Column("config", Text, nullable=False),
    Column("stage", String(16), nullable=False),
    Column("race", String(24), nullable=False),
    Column("ok", Boolean, nullable=False),
    Column("median", Float),
    Column("failure", String(16)),
    Column("reason", Text),
    Column("calls", Integer),
    Column("warnings", Text),
    Column("processes", Integer),
    Column("disturbed", Text),
    Column("created", Float, nullable=False),
    Column("build_seconds", Float, nullable=False),
    Column("git_commit", String(64), nullable=False),
)
Index("trial_known", trial.c.machine_id, trial.c.environment_id, trial.c.policy_id, trial.c.workload_id)

# Raw samples as little-endian float64 seconds; apart from the trial because most questions do not read them.
samples = Table(
    "samples",
    metadata,
    Column("trial_id", ForeignKey("trial.id"), primary_key=True),
    Column("seconds", LargeBinary, nullable=False),
)
