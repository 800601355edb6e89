"""Rooflines: every measured ceiling, and every winner beneath them, one picture per dtype."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perfsuite import units
from perfsuite.op import Workload
from perfsuite.report import bandwidth
from perfsuite.report.evidence import Evidence
from perfsuite.report.picture import MARKERS, Box, Picture, Theme, halo, label_points, legend, log_scale, plot, text_box
from perfsuite.report.section import NONE, Cell, Grid, Section, cells
from perfsuite.report.winners import Winner
from perfsuite.roofline import Ceiling, Ceilings, Level

# Decades.
APART = 0.02
ABOUT = (
    "Measured by probes that are tuned like any kernel; capacities are the knees of the copy curve. In the rooflines, "
    "slopes are the copy bandwidths of the memory levels, flat roofs the best rate of each ISA; dashed, what a "
    "narrower ISA reaches. A filled mark is a winner, the ring on its stem the default kernel on the same workload. "
    "Those of equal intensity stand side by side. Bytes are the compulsory traffic: every input once, every output "
    "once. Labels that found no room are left out."
)


def pictures(evidence: Evidence, found: Sequence[Winner]) -> list[Picture]:
    """One picture per dtype of which a peak was measured."""
    ceilings = evidence.ceilings
    if not ceilings.levels:
        return []
    return [
        Picture(
            f"roofline-{dtype}",
            f"Roofline, {dtype}",
            f"{units.several(len(own), 'winner')} on {dtype}." if own else "No winner computes in it yet.",
            partial(_draw, evidence, dtype, own),
        )
        for dtype in sorted({c.dtype for c in ceilings.peaks})
        for own in [[w for w in found if w.dtype == dtype and w.intensity > 0.0]]
    ]


def _draw(evidence: Evidence, dtype: str, found: Sequence[Winner], theme: Theme) -> Figure:
    ceilings = evidence.ceilings
    peaks = [c for c in ceilings.peaks if c.dtype == dtype]
    figure, axes = plot(theme, 6.0, left=1.0, legend_rows=1)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte of compulsory traffic")
    top = peaks[0].value
    ridge = top / ceilings.levels[-1].bandwidth
    places = side_by_side(found)
    x = [places[w.entry.workload] for w in found]
    y = [w.intensity * w.op.least_bytes(w.entry.workload) / w.entry.seconds for w in found if w.op]
    slowest = [_rate(w, w.default.seconds) for w in found if w.default] + y
    left, right = min([0.25, *(0.25 * v for v in x)]), max([2.5 * ridge, *(3.0 * v for v in x)])
    low = min([0.6 * left * ceilings.levels[-1].bandwidth, *(0.5 * v for v in slowest)])
    axes.set(xlim=(left, right), ylim=(low, 2.2 * top))
    log_scale(axes.xaxis, lambda value: f"{value:g}")
    log_scale(axes.yaxis, lambda value: units.work_rate(value, dtype))
    taken = _draw_levels(axes, theme, ceilings, peaks) + _draw_peaks(axes, theme, peaks)
    taken += _draw_winners(axes, theme, evidence, found, places)
    label_points(axes, theme, [(a, b, _short(w.entry.workload)) for a, b, w in zip(x, y, found)], taken)
    if found:
        legend(axes, theme)
    return figure


def side_by_side(found: Sequence[Winner]) -> dict[Workload, float]:
    """Where each winner stands: at its intensity, those of one intensity a little apart around it."""
    alike: dict[float, list[Workload]] = {}
    for winner in sorted(found, key=lambda w: w.entry.seconds):
        alike.setdefault(round(math.log10(winner.intensity), 1), []).append(winner.entry.workload)
    exact = {w.entry.workload: w.intensity for w in found}
    places = {}
    for workloads in alike.values():
        step = min(APART, 0.09 / max(1, len(workloads) - 1))
        for at, workload in enumerate(workloads):
            places[workload] = exact[workload] * 10.0 ** (step * (2 * at - len(workloads) + 1))
    return places


def _rate(winner: Winner, seconds: float) -> float:
    return winner.op.operations(winner.entry.workload) / seconds if winner.op else 0.0


def _short(workload: Workload) -> str:
    return f"{workload.op} {'×'.join(str(length) for _, length in workload.sizes)}"


def _draw_levels(axes: Axes, theme: Theme, ceilings: Ceilings, peaks: Sequence[Ceiling]) -> list[Box]:
    """The slopes; an ISA whose level is more than a tenth slower has a thin one of its own."""
    taken: list[Box] = []
    left = axes.get_xlim()[0]
    for level in ceilings.levels:
        end = peaks[0].value / level.bandwidth
        axes.plot([left, end], [left * level.bandwidth, peaks[0].value], color=theme.ink, linewidth=1.4, zorder=2)
        taken += _write_along(axes, theme, level, left)
        for peak in peaks[1:]:
            slower = _of_isa(ceilings, peak.isa, level)
            if slower is not None and slower < 0.9 * level.bandwidth:
                ends = (left * slower, peak.value)
                line = axes.plot([left, peak.value / slower], ends, color=theme.muted, linewidth=0.8, zorder=2)
                line[0].set_linestyle((0, (4, 3)))
    return taken


def _of_isa(ceilings: Ceilings, isa: str, level: Level) -> float | None:
    """Bandwidth of one ISA's probes at the footprints where the level's plateau lies."""
    footprints = [f for f, _ in ceilings.curve() if ceilings.level(f) == level]
    values = [ceilings.restricted(isa).bandwidth(f) for f in footprints] if isa else []
    return float(np.median([v for v in values if v is not None])) if any(values) else None


def _write_along(axes: Axes, theme: Theme, level: Level, left: float) -> list[Box]:
    """The level's name along its slope; returns the places that the text covers, piece by piece."""
    a, b = axes.transData.transform([(left, left * level.bandwidth), (10 * left, 10 * left * level.bandwidth)])
    angle = math.degrees(math.atan2(b[1] - a[1], b[0] - a[0]))
    text = f"{level.name} {units.bandwidth(level.bandwidth)}"
    x, y = left * 1.12, left * 1.12 * level.bandwidth * 1.06
    axes.text(
        x,
        y,
        text,
        rotation=angle,
        rotation_mode="anchor",
        fontsize=8.5,
        color=theme.ink,
        va="bottom",
        zorder=4,
        path_effects=halo(theme),
    )
    start, unit = axes.transData.transform((x, y)), 8.5 * 2.0
    steps = range(0, round(0.65 * unit * len(text)), 12)
    slope = math.radians(angle)
    along = [(start[0] + s * math.cos(slope), start[1] + s * math.sin(slope)) for s in steps]
    return [Box(px - unit, py, px + 4.0, py + unit * 1.3) for px, py in along]


def _draw_peaks(axes: Axes, theme: Theme, peaks: Sequence[Ceiling]) -> list[Box]:
    """The flat roofs; a label that would cover a higher one's goes below its line."""
    taken: list[Box] = []
    fastest = max(c.value for c in peaks)
    right = axes.get_xlim()[1]
    for peak in peaks:
        top = peak.value == fastest
        axes.axhline(
            peak.value,
            color=theme.ink if top else theme.muted,
            linewidth=1.4 if top else 0.9,
            zorder=1.5,
            linestyle="-" if top else (0, (4, 3)),
        )
        name = peak.isa.replace("_", " ") or peak.kernel.rpartition("/")[2]
        text = f"{name} {peak.op} {units.work_rate(peak.value, peak.dtype)}"
        x, y = axes.transData.transform((right, peak.value))
        width = text_box(0, 0, text, 8.5).right
        for bottom in (y + 4, y - 24):
            box = text_box(x - width - 6, bottom, text, 8.5)
            if not any(box.meets(other) for other in taken):
                at = axes.transAxes.inverted().transform((x - 6, bottom + 2))
                axes.text(at[0], at[1], text, transform=axes.transAxes, ha="right", fontsize=8.5, color=theme.ink)
                taken.append(box)
                break
    return taken


def _draw_winners(
    axes: Axes, theme: Theme, evidence: Evidence, found: Sequence[Winner], places: Mapping[Workload, float]
) -> list[Box]:
    """The winners and, on a stem below each, its default; returns the places of the stems."""
    taken: list[Box] = []
    for at, family in enumerate(evidence.families):
        own = [w for w in found if w.family == family]
        if not own:
            continue
        hue = theme.hue(at)
        for winner in own:
            if winner.default is not None:
                at_x = places[winner.entry.workload]
                ends = [_rate(winner, seconds) for seconds in (winner.default.seconds, winner.entry.seconds)]
                axes.plot([at_x] * 2, ends, color=hue, linewidth=1.0, alpha=0.55, zorder=3)
                axes.plot(at_x, ends[0], "o", ms=4, mfc=theme.surface, mec=hue, mew=1.0, zorder=4)
                (left, bottom), (right, top) = axes.transData.transform([(at_x, min(ends)), (at_x, max(ends))])
                taken.append(Box(left - 4.0, bottom - 6.0, right + 4.0, top))
        x, y = [places[w.entry.workload] for w in own], [_rate(w, w.entry.seconds) for w in own]
        axes.scatter(
            x,
            y,
            s=38,
            marker=MARKERS[at % len(MARKERS)],
            color=hue,
            edgecolor=theme.surface,
            linewidth=0.8,
            label=family,
            zorder=5,
        )
    return taken


def section(evidence: Evidence, found: Sequence[Winner]) -> Section:
    ceilings = evidence.ceilings
    title = "Ceilings and rooflines"
    threads = evidence.policy.threads
    if not ceilings.every:
        missing = f"No ceilings were measured with {units.several(threads, 'thread')}"
        todo = f"{missing}: run `perfsuite tune probes --threads {threads}`. Until then there is no ideal time."
        return Section("ceilings", title, (todo,))
    levels = Grid(
        (("Level", "text"), ("Holds up to", "number"), ("Copy bandwidth", "number")),
        tuple(
            cells(
                level.name,
                "the rest" if level.capacity is None else units.size(level.capacity),
                units.bandwidth(level.bandwidth),
            )
            for level in ceilings.levels
        ),
        title="Memory",
    )
    peaks = Grid(
        (("Dtype", "code"), ("ISA", "code"), ("Peak", "number"), ("Probe", "code")),
        tuple(
            cells(c.dtype, c.isa or NONE, units.work_rate(c.value, c.dtype), Cell(f"{c.op} {c.kernel}", str(c.config)))
            for c in sorted(ceilings.peaks, key=lambda c: (c.dtype, -c.value))
        ),
        title="Arithmetic",
    )
    words = [ABOUT] if ceilings.levels else ["No bandwidth was measured: a roofline needs the copy probe."]
    unknown = sorted({w.dtype for w in found if ceilings.peak(w.dtype) is None})
    if unknown:
        words.append(f"No peak was measured for {', '.join(unknown)}: its winners have no share of a ceiling.")
    shown = pictures(evidence, found) + bandwidth.pictures(evidence)
    grids = tuple(grid for grid in (levels, peaks) if grid.rows)
    return Section("ceilings", title, tuple(words), tuple(shown), grids)
