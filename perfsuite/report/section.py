"""What a part of a report says before it is a page or Markdown: words, tables, pictures, commands."""

from __future__ import annotations

from dataclasses import dataclass

from perfsuite.report.picture import Picture

# A value that was not measured.
NONE = "—"


@dataclass(frozen=True)
class Cell:
    """`text`, in smaller letters what belongs to it, and a long text that the page folds away."""

    text: str
    small: str = ""
    folded: str = ""


@dataclass(frozen=True)
class Grid:
    """A table of cells. A column's kind is `text`, `word` (kept on one line), `code`, `number` or `verdict`."""

    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""


@dataclass(frozen=True)
class Section:
    """`words` are paragraphs, where `...` in backquotes is code."""

    key: str
    title: str
    words: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    grids: tuple[Grid, ...] = ()
    commands: tuple[str, ...] = ()


def cells(*values: str | Cell) -> tuple[Cell, ...]:
    return tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in values)
