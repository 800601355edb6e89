"""A leaderboard on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from perfsuite import units
from perfsuite.leaderboard import Leaderboard, equal_ways
from perfsuite.report.search import COLUMNS, repeats_of, row

_STYLES = {"met": "green", "missed": "red", "not judged": "dim"}


def show(board: Leaderboard, console: Console) -> None:
    """The standings, the ways to decide, and every target with its figure."""
    configs = sum(table.configs for table in board.tables)
    console.print(
        f"{units.several(len(board.tables), 'table')} of {configs:,} configs, {units.several(board.repeats, 'seed')}",
        highlight=False,
    )
    grid = Grid(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name, kind in COLUMNS:
        grid.add_column(name, justify="right" if kind == "number" else "left")
    for standing in board.standings:
        style = "bold" if standing.name == board.default else "" if not standing.tuner else "dim"
        grid.add_row(*row(standing), style=style)
    console.print(grid)
    for way in equal_ways(board.ways):
        console.print(
            f"{way.name}: {repeats_of(way)}, {way.samples:.0f} samples in the mean, "
            f"{units.percent(way.false_winners)} false winners",
            highlight=False,
        )
    for target in board.targets:
        console.print(Text(f"{target.verdict}: ", _STYLES[target.verdict]) + Text(f"{target.words}: {target.figure}"))
    if board.missing:
        console.print(f"Not installed: {', '.join(board.missing)}; pip install 'perfsuite[lab]'", markup=False)
