"""Waterlines: a roofline for a sequence of kernels. Where fusion could lift a model, and where it could not.

Kernel i moves d_i bytes at intensity I_i, so that peak times its ideal time is d_i * max(I_i, beta), beta being peak
over bandwidth: a bar of width d_i and height I_i, filled up with lost capacity to the waterline beta. The identity is
algebra; the drawing convention here is perfsuite's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perfsuite import units
from perfsuite.report.evidence import Evidence
from perfsuite.report.picture import DPI, Picture, Theme, legend, note_row, plot
from perfsuite.report.section import Section
from perfsuite.report.winners import Winner
from perfsuite.roofline import Ceilings

MOST = 4
ABOUT = (
    "Each bar is a kernel: its width the bytes it must move in a forward pass, its height the operations per byte, its "
    "area the useful work (bars taller than the picture are cut). Water fills what memory leaves of the peak. Fusing "
    "kernels narrows their bars and lifts them; where all stand above the water there is nothing to gain by it."
)
MIB = float(1 << 20)


@dataclass(frozen=True)
class Pool:
    """The kernels of one model on one dtype: (winner, bytes, operations) of a forward pass, highest intensity first."""

    model: str
    dtype: str
    bars: tuple[tuple[Winner, float, float], ...]
    seconds: float

    @property
    def work(self) -> float:
        return sum(work for _, _, work in self.bars)

    def bound(self, peak: float, bandwidth: float) -> float:
        """The largest efficiency (useful work over peak) that the memory level allows kernel by kernel."""
        return self.work / sum(max(work, size * peak / bandwidth) for _, size, work in self.bars)


def pools(found: Sequence[Winner]) -> list[Pool]:
    """Models with at least two different ops on one dtype, the one with most bytes first."""
    grouped: dict[tuple[str, str], list[tuple[Winner, int]]] = {}
    for winner in found:
        for model, calls in winner.models:
            if winner.op is not None and winner.intensity > 0.0:
                grouped.setdefault((model, winner.dtype), []).append((winner, calls))
    shown = []
    for (model, dtype), parts in grouped.items():
        if len({w.entry.workload.op for w, _ in parts}) > 1:
            sized = [(w, calls * w.op.least_bytes(w.entry.workload), calls) for w, calls in parts if w.op]
            bars = [(w, float(size), w.intensity * size) for w, size, _ in sized]
            seconds = sum(calls * w.entry.seconds for w, _, calls in sized)
            shown.append(Pool(model, dtype, tuple(sorted(bars, key=lambda bar: -bar[0].intensity)), seconds))
    return sorted(shown, key=lambda pool: -sum(size for _, size, _ in pool.bars))


def pictures(evidence: Evidence, found: Sequence[Winner]) -> list[Picture]:
    ceilings = evidence.ceilings
    with_peak = [p for p in pools(found) if ceilings.peak(p.dtype) is not None and ceilings.levels]
    return [
        Picture(
            f"waterline-{at}",
            f"Waterline: {pool.model}, {pool.dtype}",
            _caption(pool, ceilings),
            partial(_draw, evidence, pool),
        )
        for at, pool in enumerate(with_peak[:MOST], 1)
    ]


def _caption(pool: Pool, ceilings: Ceilings) -> str:
    peak = ceilings.peak(pool.dtype) or 0.0
    bounds = ", ".join(
        f"{units.percent(pool.bound(peak, level.bandwidth))} if all data came from {level.name}"
        for level in reversed(ceilings.levels)
    )
    reached = units.percent(pool.work / pool.seconds / peak)
    return f"Reached: {reached} of the peak. Kernel by kernel within reach: {bounds}."


def _draw(evidence: Evidence, pool: Pool, theme: Theme) -> Figure:
    ceilings = evidence.ceilings
    peak = ceilings.peak(pool.dtype) or 0.0
    waterlines = [(level.name, peak / level.bandwidth) for level in ceilings.levels]
    deepest = waterlines[-1][1]
    figure, axes = plot(theme, 4.4, right=1.5, legend_rows=1)
    total = sum(size for _, size, _ in pool.bars) / MIB
    tallest = max(winner.intensity for winner, _, _ in pool.bars)
    top = 1.15 * min(max(deepest, tallest), 2.0 * deepest)
    axes.set(xlim=(0.0, total), ylim=(0.0, top))
    start = 0.0
    for winner, moved, _ in pool.bars:
        size = moved / MIB
        height = min(winner.intensity, top)
        hue = theme.hue(evidence.families.index(winner.family))
        axes.bar(start, height, size, align="edge", color=hue, edgecolor=theme.surface, linewidth=0.8, zorder=3)
        if height < deepest:
            axes.bar(start, deepest - height, size, bottom=height, align="edge", color=theme.water, zorder=2)
        _name(axes, theme, winner, (start, size, height))
        start += size
    for name, beta in waterlines:
        if beta <= top:
            axes.axhline(beta, color=theme.ink, linewidth=1.2 if beta == deepest else 0.8, zorder=4)
            note_row(axes, beta, f"{name} {beta:.3g} op/B", theme.ink)
    for family in dict.fromkeys(winner.family for winner, _, _ in pool.bars):
        axes.bar(0.0, 0.0, color=theme.hue(evidence.families.index(family)), label=family)
    axes.bar(0.0, 0.0, color=theme.water, label="lost to memory, from DRAM")
    axes.set(xlabel="MiB moved per forward pass", ylabel="operations per byte")
    axes.grid(False)
    legend(axes, theme)
    return figure


def _name(axes: Axes, theme: Theme, winner: Winner, bar: tuple[float, float, float]) -> None:
    """The workload's name above its bar, upright where that is too narrow; none where even that does not fit."""
    start, size, height = bar
    wide = axes.transData.transform((size, 0.0))[0] - axes.transData.transform((0.0, 0.0))[0]
    unit = 7.0 * DPI / 72.0
    if wide < 1.3 * unit:
        return
    text = f"{winner.label}, {winner.intensity:.3g} op/B"
    level = wide > 0.62 * unit * len(text)
    inside = height > 0.75 * axes.get_ylim()[1]
    axes.annotate(
        text,
        (start + size / 2.0, height),
        xytext=(0, -4 if inside else 4),
        textcoords="offset points",
        ha="center",
        va="top" if inside else "bottom",
        rotation=0 if level else 90,
        fontsize=7,
        color=theme.surface if inside else theme.ink,
        zorder=5,
    )


def section(evidence: Evidence, found: Sequence[Winner]) -> Section | None:
    shown = pictures(evidence, found)
    return Section("waterlines", "What fusion could gain", (ABOUT,), tuple(shown)) if shown else None
