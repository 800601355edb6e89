"""What every test gets: its own database, cached compiles, quiet where it measures, and the choice of slow ones."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

# Threads that spin while they wait for each other take up to seven times as long beside other processes. OpenMP reads
# this once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
from hypothesis import settings
from synthetic import build_evidence

from perfsuite.report import Evidence, write

# Time on a shared machine says nothing about an example.
settings.register_profile("perfsuite", deadline=None, max_examples=60)
settings.load_profile("perfsuite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes long: run with --slow"))


@pytest.fixture(scope="session")
def locks(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder that all workers of pytest-xdist share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if hasattr(request.config, "workerinput") else own


@pytest.fixture(autouse=True)
def beside_others(locks: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """No other worker runs a test beside one that is marked `quiet`."""
    quiet = request.node.get_closest_marker("quiet") is not None
    with (locks / "next").open("w") as turn, (locks / "running").open("w") as running:
        fcntl.flock(turn, fcntl.LOCK_EX)  # who waits here has its turn before those who come later
        fcntl.flock(running, fcntl.LOCK_EX if quiet else fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_UN)
        yield


@pytest.fixture(autouse=True)
def own_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees or touches the user's results."""
    path = tmp_path / "perfsuite.db"
    monkeypatch.setenv("PERFSUITE_DB", str(path))
    monkeypatch.delenv("PERFSUITE_KERNELS", raising=False)
    return path


@pytest.fixture(scope="session")
def evidence() -> Evidence:
    return build_evidence()


@pytest.fixture(scope="session")
def folder(evidence: Evidence, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the synthetic machine."""
    out = tmp_path_factory.mktemp("report") / "new" / "folder"
    assert write(evidence, out) == out / "index.html"
    return out


@pytest.fixture(scope="session")
def page(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def markdown(folder: Path) -> str:
    return (folder / "report.md").read_text(encoding="utf-8")
