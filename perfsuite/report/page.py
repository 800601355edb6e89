"""The report as one self-contained page, as Markdown, and its pictures as files."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from PIL import Image

from perfsuite import units
from perfsuite.report import (
    algorithms,
    efficiency,
    models,
    provenance,
    regret,
    roofs,
    search,
    spending,
    spread,
    troubles,
    waterline,
)
from perfsuite.report.evidence import Evidence
from perfsuite.report.picture import DARK, LIGHT
from perfsuite.report.section import Section
from perfsuite.report.winners import Winner, geometric_mean, winners
from perfsuite.stats import Verdict

_CODE = re.compile(r"`([^`]+)`")


def write(evidence: Evidence, out: Path) -> Path:
    """Write index.html, report.md and the pictures into the folder `out`; returns the path of the page."""
    found = winners(evidence)
    sentence, numbers = summary(evidence, found)
    parts = _sections(evidence, found)
    out.mkdir(parents=True, exist_ok=True)
    pictures = [picture for part in parts for picture in part.pictures]
    light = {picture.name: picture.png(LIGHT) for picture in pictures}
    for name, png in light.items():
        (out / f"{name}.png").write_bytes(png)
    said: dict[str, Any] = {
        "machine": evidence.machine,
        "policy": evidence.policy,
        "sentence": sentence,
        "numbers": numbers,
        "sections": parts,
    }
    (out / "report.md").write_text(_markdown().get_template("report.md").render(said), encoding="utf-8")
    inlined = {
        p.name: {"light": _inline(light[p.name]), "dark": _inline(p.png(DARK)), "size": _size(light[p.name])}
        for p in pictures
    }
    page = out / "index.html"
    page.write_text(_html(inlined).get_template("report.html").render(said), encoding="utf-8")
    return page


def _sections(evidence: Evidence, found: Sequence[Winner]) -> list[Section]:
    """In the order of reading; those that have nothing to say are left out."""
    every = [
        models.section(evidence, found),
        efficiency.section(evidence, found),
        roofs.section(evidence, found),
        waterline.section(evidence, found),
        spread.section(evidence),
        regret.section(evidence),
        algorithms.section(evidence),
        search.section(evidence.searches),
        troubles.failed(evidence),
        troubles.refused(evidence),
        troubles.pruned(evidence),
        troubles.disturbed(evidence),
        troubles.left_out(evidence),
        spending.section(evidence),
        provenance.machine_section(evidence),
        provenance.commands(evidence, found),
    ]
    return [section for section in every if section is not None]


def summary(evidence: Evidence, found: Sequence[Winner]) -> tuple[str, list[tuple[str, str]]]:
    """The report in a sentence, and its (number, what it counts) in a row."""
    counts = [(f"{len(evidence.used):,}", "trials"), (f"{len(evidence.failed):,}", "failed")]
    rated = [(winner.speedup, winner) for winner in found if winner.speedup is not None]
    if not rated:
        timed = len(evidence.times)
        if not evidence.used:
            return "Nothing was tried yet under this policy: run `perfsuite tune`.", counts
        if not timed:
            return "Every trial failed: the reasons are below.", counts
        return f"{units.several(timed, 'workload')} timed, and no winner raced yet: run `perfsuite tune` again.", counts
    faster = [w for _, w in rated if w.entry.verdict == Verdict.FASTER]
    mean = geometric_mean([speedup for speedup, _ in rated])
    most, best = max(rated, key=lambda pair: pair[0])
    sentence = (
        f"{len(faster)} of {units.several(len(rated), 'workload')} run faster than the default kernel; all of them "
        f"together, winners and ties, {units.ratio(mean)} in the geometric mean, at most {units.ratio(most)} "
        f"(`{best.entry.workload}`)."
    )
    return sentence, [
        (units.ratio(mean), "geometric mean over default"),
        (f"{len(faster)}/{len(rated)}", "faster than default"),
        (units.ratio(most), "at most"),
        *counts,
    ]


def _html(inlined: Mapping[str, Mapping[str, object]]) -> jinja2.Environment:
    """Templates whose pictures are in the page itself."""
    environment = _environment(autoescape=True)
    environment.filters["code"] = lambda text: Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))
    environment.filters["breaks"] = lambda text: escape(text).replace(",", Markup(",<wbr>"))
    environment.globals["inlined"] = inlined
    return environment


def _markdown() -> jinja2.Environment:
    environment = _environment(autoescape=False)
    environment.filters["cell"] = _markdown_cell
    return environment


def _environment(autoescape: bool) -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    return jinja2.Environment(
        loader=loader, autoescape=autoescape, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _markdown_cell(text: str) -> str:
    """One line that ends no cell of a table and is no HTML."""
    for character, instead in (("\n", " "), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|")):
        text = text.replace(character, instead)
    return text


def _inline(png: bytes) -> str:
    """As lossless WebP, half the bytes of the PNG."""
    packed = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(packed, "webp", lossless=True, method=4)
    return "data:image/webp;base64," + base64.b64encode(packed.getvalue()).decode()


def _size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the header of a PNG."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
