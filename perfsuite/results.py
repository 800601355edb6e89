"""The store: append trials, ask for them. Nothing is updated or deleted; a winner is a query."""

from __future__ import annotations

import array
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine, Row

from perfsuite import schema
from perfsuite.kernel import Config
from perfsuite.machine import Machine
from perfsuite.op import Workload
from perfsuite.policy import Policy
from perfsuite.trial import Disturbance, Failure, FailureKind, Measurement, Trial

# The schema that this code reads and writes, and those it can migrate from.
HEAD = "0002"
_KNOWN = ("0001", "0002")
_BUSY_SECONDS = 60
_MIGRATION_LOCK = 0x70657266


class ResultsError(ValueError):
    """The database cannot be used; the message says why and what to do."""


class Results:
    """Trials in one database: SQLite by default, any SQLAlchemy URL for a fleet.

    Several processes may use one database; each `add` is one short transaction.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str) -> Results:
        """Open, creating or migrating where needed; ResultsError leaves a database that is not ours untouched."""
        try:
            engine = _engine(url)
            _prepare(engine, url)
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError) as wrong:
            raise ResultsError(f"{url!r} is no database that SQLAlchemy can open: {wrong}") from wrong
        except (sa.exc.DatabaseError, OSError) as wrong:
            said = str(getattr(wrong, "orig", None) or wrong)
            raise ResultsError(
                f"{_shown(url)} cannot be opened as a perfsuite database ({said}). It was left as it is: "
                "move it away, or name another with --db"
            ) from wrong
        return cls(engine)

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, *trials: Trial) -> int:
        """Append trials in one transaction; the number of those that were not there yet."""
        new = 0
        with self._engine.begin() as connection:
            for trial in trials:
                new += self._add(connection, trial)
        return new

    def _add(self, connection: Connection, trial: Trial) -> int:
        machine = trial.machine.to_json()
        environment = machine.pop("environment")
        ids = {
            "machine_id": trial.machine.id,
            "environment_id": trial.machine.environment_id,
            "workload_id": _id(str(trial.workload)),
            "policy_id": _id(_dump(trial.policy.to_json())),
        }
        self._insert(connection, schema.machine, id=ids["machine_id"], cpu=trial.machine.cpu, data=_dump(machine))
        self._insert(connection, schema.environment, id=ids["environment_id"], data=_dump(environment))
        self._insert(connection, schema.kernel_code, kernel=trial.kernel, digest=trial.digest)
        self._insert(
            connection,
            schema.workload,
            id=ids["workload_id"],
            op=trial.workload.op,
            data=_dump(trial.workload.to_json(), keep_order=True),
        )
        self._insert(connection, schema.policy, id=ids["policy_id"], data=_dump(trial.policy.to_json()))
        new = self._insert(connection, schema.trial, id=trial.id, **ids, **_columns(trial))
        if new and trial.measurement is not None:
            seconds = _pack(trial.measurement.samples)
            self._insert(connection, schema.samples, trial_id=trial.id, seconds=seconds)
        return new

    def _insert(self, connection: Connection, table: sa.Table, **values: Any) -> int:
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        statement = dialect.insert(table).values(**values).on_conflict_do_nothing()
        key = next(iter(table.primary_key))
        return int(connection.execute(statement.returning(key)).first() is not None)

    def trials(
        self,
        machine: Machine | None = None,
        *,
        policy: Policy | None = None,
        op: str | None = None,
        stage: str | None = None,
    ) -> list[Trial]:
        """The trials in the order they were made; with a machine, only those of its hardware and environment."""
        t, s = schema.trial, schema.samples
        query = (
            sa.select(
                t,
                s.c.seconds,
                schema.machine.c.data.label("machine"),
                schema.environment.c.data.label("environment"),
                schema.workload.c.data.label("workload"),
                schema.policy.c.data.label("policy"),
            )
            .join(schema.machine, schema.machine.c.id == t.c.machine_id)
            .join(schema.environment, schema.environment.c.id == t.c.environment_id)
            .join(schema.workload, schema.workload.c.id == t.c.workload_id)
            .join(schema.policy, schema.policy.c.id == t.c.policy_id)
            .outerjoin(s, s.c.trial_id == t.c.id)
            .order_by(t.c.created, t.c.id)
        )
        if machine is not None:
            query = query.where(t.c.machine_id == machine.id, t.c.environment_id == machine.environment_id)
        if policy is not None:
            query = query.where(t.c.policy_id == _id(_dump(policy.to_json())))
        if op is not None:
            query = query.where(schema.workload.c.op == op)
        if stage is not None:
            query = query.where(t.c.stage == stage)
        with self._engine.connect() as connection:
            read = _Reader()
            return [read.trial(row) for row in connection.execute(query)]

    def machines(self) -> list[Machine]:
        """Every machine with every environment that has trials."""
        t = schema.trial
        query = (
            sa.select(schema.machine.c.data.label("machine"), schema.environment.c.data.label("environment"))
            .select_from(t)
            .join(schema.machine, schema.machine.c.id == t.c.machine_id)
            .join(schema.environment, schema.environment.c.id == t.c.environment_id)
            .distinct()
        )
        with self._engine.connect() as connection:
            read = _Reader()
            return [read.machine(row.machine, row.environment) for row in connection.execute(query)]


class _Reader:
    """Rows to trials; each machine, workload and policy is parsed once."""

    def __init__(self) -> None:
        self._machines: dict[tuple[str, str], Machine] = {}
        self._workloads: dict[str, Workload] = {}
        self._policies: dict[str, Policy] = {}

    def machine(self, data: str, environment: str) -> Machine:
        key = data, environment
        if key not in self._machines:
            fields = {**json.loads(data), "environment": json.loads(environment)}
            self._machines[key] = Machine.from_json(fields)
        return self._machines[key]

    def trial(self, row: Row[Any]) -> Trial:
        if row.workload not in self._workloads:
            self._workloads[row.workload] = Workload.from_json(json.loads(row.workload))
        if row.policy not in self._policies:
            self._policies[row.policy] = Policy.from_json(json.loads(row.policy))
        outcome: Measurement | Failure
        if row.ok:
            warnings = tuple(Disturbance(word) for word in row.warnings.split())
            disturbed = tuple(json.loads(row.disturbed or "[]"))
            outcome = Measurement(_unpack(row.seconds), row.calls, warnings, row.processes or 1, disturbed)
        else:
            outcome = Failure(FailureKind(row.failure), row.reason)
        return Trial(
            self.machine(row.machine, row.environment),
            self._workloads[row.workload],
            row.kernel,
            Config.from_json(json.loads(row.config)),
            self._policies[row.policy],
            row.digest,
            outcome,
            row.created,
            row.stage,
            row.race,
            row.build_seconds,
            row.git_commit,
        )


def _columns(trial: Trial) -> dict[str, Any]:
    measurement, failure = trial.measurement, trial.failure
    return {
        "kernel": trial.kernel,
        "digest": trial.digest,
        "config": _dump(trial.config.to_json(), keep_order=True),
        "stage": trial.stage,
        "race": trial.race,
        "ok": measurement is not None,
        "median": measurement.median if measurement else None,
        "calls": measurement.calls if measurement else None,
        "warnings": " ".join(measurement.warnings) if measurement else None,
        "processes": measurement.processes if measurement else None,
        "disturbed": _dump(measurement.disturbed) if measurement and measurement.disturbed else None,
        "failure": failure.kind if failure else None,
        "reason": failure.reason if failure else None,
        "created": trial.created,
        "build_seconds": trial.build_seconds,
        "git_commit": trial.commit,
    }


def _engine(url: str) -> Engine:
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY_SECONDS} if url.startswith("sqlite") else {})
    if engine.dialect.name == "sqlite":
        path = engine.url.database
        if path and path != ":memory:":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        # The driver's own transactions neither cover DDL nor take the write lock first; two writers that both hold a
        # read lock would fail at once with "database is locked" instead of waiting.
        sa.event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    elif engine.dialect.name != "postgresql":
        raise sa.exc.ArgumentError(f"{engine.dialect.name} is not supported; use SQLite or PostgreSQL")
    return engine


def _prepare(engine: Engine, url: str) -> None:
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # SQLite's BEGIN IMMEDIATE already lets one process migrate at a time
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        names = set(sa.inspect(connection).get_table_names())
        version = (
            connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
            if "alembic_version" in names
            else None
        )
        if version is not None and version not in _KNOWN:
            raise ResultsError(
                f"{_shown(url)} was written by a newer perfsuite (schema {version}, this one knows {HEAD}). "
                "It was left as it is: upgrade perfsuite, or name another database with --db"
            )
        if version is None and names & set(schema.metadata.tables):
            raise ResultsError(
                f"{_shown(url)} holds tables that are not perfsuite's. It was left as it is: name another with --db"
            )
        if version != HEAD:
            _migrate(connection)
    if engine.dialect.name == "sqlite":
        raw = engine.raw_connection()
        try:
            # Readers go on while one process writes. With NORMAL only a power cut, no kill, can lose the last trial.
            raw.cursor().execute("PRAGMA journal_mode=WAL")
        finally:
            raw.close()
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=NORMAL"))


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config as AlembicConfig

    config = AlembicConfig()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _shown(url: str) -> str:
    return url.removeprefix("sqlite:///") if url.startswith("sqlite") else sa.make_url(url).render_as_string()


def _dump(data: Any, *, keep_order: bool = False) -> str:
    return json.dumps(data, sort_keys=not keep_order, separators=(",", ":"))


def _id(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _pack(values: Sequence[float]) -> bytes:
    packed = array.array("d", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _unpack(data: bytes) -> tuple[float, ...]:
    values = array.array("d", data)
    if sys.byteorder == "big":
        values.byteswap()
    return tuple(values)
