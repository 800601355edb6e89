"""What every test gets: its own database, cached compiles, and the choice of slow ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

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


@pytest.fixture(autouse=True)
def own_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees or touches the user's results."""
    path = tmp_path / "perfsuite.db"
    monkeypatch.setenv("PERFSUITE_DB", str(path))
    monkeypatch.delenv("PERFSUITE_KERNELS", raising=False)
    return path
