"""The tables of a report's page."""

from __future__ import annotations

from html.parser import HTMLParser


class Tables(HTMLParser):
    """The tables of a page: rows of cells; what a cell says in small letters or folds away comes after a slash."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True
        elif tag in ("small", "pre") and self.inside:
            self.tables[-1][-1][-1] += " / "

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.tables[-1][-1][-1] += data.strip("\n")

    def row(self, first: str) -> dict[str, str]:
        """The only row that starts with this cell, by column."""
        found = [
            dict(zip(table[0], row)) for table in self.tables for row in table[1:] if row[0].split(" / ")[0] == first
        ]
        assert len(found) == 1, f"{len(found)} rows start with {first}"
        return found[0]
