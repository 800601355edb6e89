"""Where perfsuite keeps things: the database, the tables of winners, the reports, the laboratory."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from perfsuite.machine import Machine

_CHECKOUT = Path(__file__).resolve().parents[1]


def home() -> Path:
    """The folder of the results: `results/` in a checkout, else the platform's user data folder."""
    if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "kernels").is_dir():
        return _CHECKOUT / "results"
    return Path(platformdirs.user_data_dir("perfsuite", appauthor=False))


def lab() -> Path:
    """The folder of recorded tables and of what was scored on them."""
    return home() / "lab"


def score_path(folder: Path | None = None) -> Path:
    """The leaderboard's file, in `lab()` unless another folder is given."""
    return (folder or lab()) / "score.json"


def database_url(given: str | None = None) -> str:
    """The SQLAlchemy URL of `given` (a URL or a path), else of $PERFSUITE_DB, else of the file in `home()`."""
    chosen = given or os.environ.get("PERFSUITE_DB") or str(home() / "perfsuite.db")
    return chosen if "://" in chosen else f"sqlite:///{Path(chosen).expanduser().resolve()}"


def folder(machine: Machine, url: str | None = None) -> Path:
    """The machine's own folder (table, report): beside the database file, or in `home()` for a database server."""
    url = database_url(url)
    root = Path(url.removeprefix("sqlite:///")).parent if url.startswith("sqlite:///") else home()
    return root / machine.slug


def table_path(machine: Machine, url: str | None = None) -> Path:
    return folder(machine, url) / "table.json"


def timeline_path(machine: Machine, url: str | None = None) -> Path:
    return folder(machine, url) / "timeline.json"
