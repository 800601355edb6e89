"""`perfsuite lab score` for a user: reads the tables, plays the searches, writes the leaderboard and its pictures."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from perfsuite import places
from perfsuite.lab import score as lab
from perfsuite.lab.table import shelf
from perfsuite.leaderboard import Leaderboard
from perfsuite.report import search as drawn
from perfsuite.report.picture import LIGHT


@dataclass(frozen=True)
class Wish:
    """What the user asked `lab score` for; without tables, those of results/lab."""

    tables: tuple[Path, ...] = ()
    strategies: tuple[str, ...] = ()
    repeats: int = 20
    peers: bool = True
    out: Path | None = None


def score(wish: Wish, console: Console, *, quiet: bool) -> Leaderboard:
    """Score, and write score.json and the pictures to the wish's folder."""
    found = shelf(wish.tables or (places.lab(),))
    for problem in found.problems:
        print(f"perfsuite: left out: {problem}", file=sys.stderr)
    names, missing = lab.searches(wish.strategies, peers=wish.peers)
    board: Leaderboard | None = None
    with console.status("", spinner="dots") as status:
        for step in lab.score(found.tables, names, wish.repeats, missing):
            if isinstance(step, Leaderboard):
                board = step
            elif not quiet:
                status.update(f"{step.name} ({step.at} of {step.of})")
    assert board is not None
    path = places.score_path(wish.out)
    board.save(path)
    for picture in drawn.pictures(board):
        path.with_name(f"{picture.name}.png").write_bytes(picture.png(LIGHT))
    return board
