"""The store: round trips, merges, and databases that are not to be touched."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from samples import MACHINE, trial

from perfsuite import bundle, schema
from perfsuite.kernel import Config
from perfsuite.machine import Machine
from perfsuite.policy import Policy
from perfsuite.results import Results, ResultsError
from perfsuite.trial import Disturbance, Failure, FailureKind, Measurement, Trial

SECONDS = st.floats(1e-9, 1e3)
OUTCOMES = st.one_of(
    st.builds(
        Measurement,
        st.lists(SECONDS, min_size=1, max_size=9).map(tuple),
        st.integers(1, 100),
        st.lists(st.sampled_from(Disturbance), unique=True).map(tuple),
        st.integers(1, 3),
        st.lists(SECONDS, max_size=3).map(tuple),
    ),
    st.builds(Failure, st.sampled_from(FailureKind), st.text(st.characters(exclude_characters="\0", codec="utf-8"))),
)
VALUES = st.one_of(st.integers(-9, 9), st.booleans(), st.sampled_from(["avx2", "a b", "é"]))
CONFIGS = st.dictionaries(st.sampled_from("abcd"), VALUES).map(lambda d: Config(tuple(d.items())))
TRIALS = st.builds(
    lambda outcome, config, created, race: trial("f/k", config=config, created=created, race=race).__class__(
        **{**trial("f/k", config=config, created=created, race=race).__dict__, "outcome": outcome}
    ),
    OUTCOMES,
    CONFIGS,
    st.floats(0, 2e9),
    st.sampled_from(["", "r1", "r2"]),
)


def store(path: Path) -> Results:
    return Results.open(f"sqlite:///{path}")


@given(TRIALS)
def test_trial_goes_to_json_and_back(one: Trial) -> None:
    again = Trial.from_json(json.loads(json.dumps(one.to_json())))
    assert again == one
    assert again.id == one.id


@given(st.lists(TRIALS, max_size=5))
def test_what_is_added_is_read_back(tmp_path_factory: pytest.TempPathFactory, trials: list[Trial]) -> None:
    with store(tmp_path_factory.mktemp("db") / "x.db") as results:
        results.add(*trials)
        read = {t.id: t for t in results.trials()}
        assert read == {t.id: t for t in trials}
        assert results.add(*trials) == 0


@given(st.lists(TRIALS, max_size=4), st.lists(TRIALS, max_size=4))
def test_merging_commutes(tmp_path_factory: pytest.TempPathFactory, left: list[Trial], right: list[Trial]) -> None:
    folder = tmp_path_factory.mktemp("merge")
    bundles = []
    for name, trials in (("a", left), ("b", right)):
        with store(folder / f"{name}.db") as results:
            results.add(*trials)
            bundle.write(folder / f"{name}.jsonl", results.trials())
        bundles.append(folder / f"{name}.jsonl")
    merged = []
    for order in (bundles, bundles[::-1]):
        with store(folder / f"{order[0].stem}-first.db") as results:
            for path in (*order, *order):
                results.add(*bundle.read(path))
            merged.append({t.id for t in results.trials()})
    assert merged[0] == merged[1] == {t.id for t in left + right}


def test_questions_are_answered_for_one_machine_policy_op_and_stage(tmp_path: Path) -> None:
    other = Machine.from_json({**MACHINE.to_json(), "cores": 64})
    mine = [trial(), trial(race="r"), trial("copy/eager", workload="copy[n=3,f32]")]
    foreign = trial().__class__(**{**trial().__dict__, "machine": other})
    with store(tmp_path / "x.db") as results:
        results.add(*mine, foreign)
        assert {t.id for t in results.trials(MACHINE)} == {t.id for t in mine}
        assert [t.id for t in results.trials(MACHINE, stage="race")] == [mine[1].id]
        assert [t.id for t in results.trials(MACHINE, op="copy")] == [mine[2].id]
        assert results.trials(MACHINE, policy=Policy(threads=2)) == []
        assert len(results.machines()) == 2


def test_a_corrupt_file_is_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"this is no database, but it may be dear to somebody\n" * 50)
    before = path.read_bytes()
    with pytest.raises(ResultsError, match=r"x\.db cannot be opened.*left as it is.*--db"):
        store(path)
    assert path.read_bytes() == before


def test_a_truncated_database_is_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with store(path) as results:
        results.add(*(trial(created=float(i)) for i in range(300)))
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw.close()
    path.write_bytes(path.read_bytes()[:3000])
    before = path.read_bytes()
    with pytest.raises(ResultsError, match="left as it is"):
        store(path)
    assert path.read_bytes() == before


def test_a_newer_schema_is_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with store(path) as results:
        results.add(trial())
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    before = path.read_bytes()
    with pytest.raises(ResultsError, match=r"newer perfsuite \(schema 9999.*upgrade perfsuite"):
        store(path)
    assert path.read_bytes() == before


def test_somebody_elses_tables_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE trial (patient TEXT)")
    raw.close()
    with pytest.raises(ResultsError, match="not perfsuite's"):
        store(path)


def test_an_url_that_means_nothing() -> None:
    with pytest.raises(ResultsError, match="no database that SQLAlchemy can open"):
        Results.open("oracular://nowhere")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("{}\n", "first line"),
        ('{"perfsuite": "trials", "format": 1}\n{"kernel": 1}\n', "line 2: lacks"),
    ],
)
def test_a_wrong_bundle_names_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bundle.jsonl"
    path.write_text(text)
    with pytest.raises(bundle.BundleError, match=says):
        list(bundle.read(path))


def test_a_compressed_bundle_holds_the_same_trials(tmp_path: Path) -> None:
    trials = [trial(created=float(at)) for at in range(50)]
    plain, packed = tmp_path / "t.jsonl", tmp_path / "t.jsonl.xz"
    assert bundle.write(plain, trials) == bundle.write(packed, trials) == 50
    assert list(bundle.read(packed)) == list(bundle.read(plain)) == trials
    assert packed.stat().st_size < plain.stat().st_size / 4
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(bundle.BundleError, match="cannot be read"):
        list(bundle.read(packed))


def test_migrations_lead_to_the_schema_in_the_code(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    store(tmp_path / "x.db").close()
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []


WRITER = """
import sys
sys.path.insert(0, sys.argv[3])
from samples import trial
from perfsuite.results import Results
with Results.open(sys.argv[1]) as results:
    for at in range(60):
        results.add(trial(created=float(at), digest=sys.argv[2]))
"""


def write_from_three_processes(url: str) -> int:
    tests = str(Path(__file__).parent)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, url, name, tests]) for name in "abc"]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    with Results.open(url) as results:
        return len(results.trials())


def test_an_older_database_is_migrated_and_keeps_its_trials(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    older = [trial(race="r1"), trial(samples=Failure(FailureKind.WRONG, "off by one"))]
    with store(path) as results:
        results.add(*older)
    with sqlite3.connect(path) as raw:
        raw.execute("ALTER TABLE trial DROP COLUMN disturbed")
        raw.execute("ALTER TABLE trial DROP COLUMN processes")
        raw.execute("UPDATE alembic_version SET version_num = '0001'")
    with store(path) as results:
        assert {t.id for t in results.trials()} == {t.id for t in older}
        assert results.add(*older) == 0


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    assert write_from_three_processes(f"sqlite:///{tmp_path / 'x.db'}") == 180


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """A PostgreSQL server of the test's own, where the machine has the programs."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").exists() else []
    if not programs or shutil.which("runuser") is None:
        pytest.skip("PostgreSQL's server is not installed")
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    folder, home = programs[-1], tmp_path / "pg"
    home.mkdir()
    shutil.chown(home, "postgres", "postgres")
    for parent in home.parents:
        if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    as_postgres: list[str | Path] = ["runuser", "-u", "postgres", "--"]
    subprocess.run(
        [*as_postgres, folder / "initdb", "-D", home / "data", "-A", "trust"], check=True, capture_output=True
    )
    control = [*as_postgres, folder / "pg_ctl", "-D", home / "data", "-w"]
    options = f"-k {home} -h '' -F"
    subprocess.run([*control, "-o", options, "-l", home / "log", "start"], check=True, capture_output=True)
    yield f"postgresql+psycopg://postgres@/postgres?host={home}"
    subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True)


def test_postgresql_stores_and_merges_alike(postgres: str) -> None:
    assert write_from_three_processes(postgres) == 180
    with Results.open(postgres) as results:
        assert results.add(trial(created=1.0, digest="a")) == 0
        assert trial(created=1.0, digest="a") in results.trials()
