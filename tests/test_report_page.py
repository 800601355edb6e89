"""The report as a document: it stands alone, page and Markdown agree, pictures are drawn, a browser loads it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import Tables
from synthetic import SOFTMAX, build_evidence

from perfsuite.report import write


def test_page_and_markdown_agree(page: str, markdown: str) -> None:
    def plain(cell: str) -> str:
        return cell.replace("\\|", "|").replace("&lt;", "<").replace("&amp;", "&").strip()

    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    written = [[plain(c).split("<br>")[0] for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rows = [row for row in written if not all(set(cell) <= set("-: ") for cell in row)]
    shown = [[cell.split(" / ")[0].strip() for cell in row] for table in Tables(page).tables for row in table]
    assert rows == shown and len(rows) > 60
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == re.findall(r"^## (.*)$", markdown, re.MULTILINE) and len(titles) >= 10


def test_the_page_stands_alone(page: str, folder: Path) -> None:
    links = re.findall(r"(?:src|href|srcset)=\"([^\"]*)\"", page) + re.findall(r"url\(([^)]*)\)", page)
    assert links and all(link.startswith(("data:image/webp;base64,", "#")) for link in links)
    assert not re.search(r"https?://|@import|<script", page)
    anchors = {link[1:] for link in links if link.startswith("#")}
    assert anchors == set(re.findall(r'<section id="([^"]*)"', page))


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 5_000
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_every_picture_is_written_linked_and_of_the_expected_size(folder: Path, page: str, markdown: str) -> None:
    sizes = {path.stem: png_size(path) for path in folder.glob("*.png")}
    assert set(sizes) == {
        *("models", "efficiency", "roofline-f32", "roofline-bf16", "bandwidth", "algorithms-f32"),
        *(f"spread-{family}" for family in ("softmax", "norms", "integer")),
        *(f"waterline-{number}" for number in (1, 2, 3, 4)),
    }
    assert {width for width, _ in sizes.values()} == {1440}
    assert sizes["roofline-f32"] == (1440, 864)
    assert set(re.findall(r"\]\((.*?)\.png\)", markdown)) == set(sizes)
    assert page.count("<img ") == page.count('media="(prefers-color-scheme: dark)" srcset') == len(sizes)


def test_the_same_evidence_gives_the_same_report(folder: Path, tmp_path: Path) -> None:
    write(build_evidence(), tmp_path)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_importing_perfsuite_imports_no_plotting() -> None:
    code = "import sys, perfsuite, perfsuite.roofline; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on the PATH")
def test_a_browser_loads_the_page(folder: Path, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,900"]
    target = (folder / "index.html").as_uri()
    picture = tmp_path / "page.png"
    loaded = subprocess.run(
        [*command, f"--screenshot={picture}", "--dump-dom", target],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert png_size(picture) == (1200, 900)
    dom = Tables(loaded.stdout)
    assert dom.row(str(SOFTMAX[0]))["Verdict"] == "FASTER"
    assert loaded.stdout.count("<img ") == len(list(folder.glob("*.png")))
