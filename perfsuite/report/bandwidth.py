"""Bandwidth curve: what the probes reach at every footprint, per ISA and kind of store, and where the knees lie."""

from __future__ import annotations

from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from matplotlib.typing import LineStyleType

from perfsuite import units
from perfsuite.kernel import Config
from perfsuite.report.evidence import Evidence
from perfsuite.report.picture import Picture, Theme, halo, legend, log_scale, panels, tick
from perfsuite.roofline import BANDWIDTH, Ceilings

STREAMING = " streaming"
LINES: tuple[LineStyleType, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))


def pictures(evidence: Evidence) -> list[Picture]:
    ceilings = evidence.ceilings
    if not ceilings.bandwidths:
        return []
    return [
        Picture(
            "bandwidth",
            "Bandwidth against footprint",
            "The best config of each probe, ISA and kind of store; the footprint is every byte read or written. "
            "Horizontal bars are the plateaus of the copy curve, vertical lines its knees: the capacities that data "
            "really gets here, whatever the machine reports.",
            partial(_draw, ceilings),
        )
    ]


def curves(ceilings: Ceilings) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(footprint, bytes/s) of each (probe, how it was built), smallest footprint first."""
    best: dict[tuple[str, str], dict[int, float]] = {}
    for c in ceilings.every:
        if c.kind == BANDWIDTH:
            built = c.isa or c.kernel.rpartition("/")[2]
            points = best.setdefault((c.op, f"{built}{STREAMING}" if streams(c.config) else built), {})
            points[c.footprint] = max(c.value, points.get(c.footprint, 0.0))
    return {key: sorted(points.items()) for key, points in sorted(best.items())}


def streams(config: Config) -> bool:
    """Whether a config asks for non-temporal stores."""
    return any(name.startswith("stream") and value not in (False, 0, "plain") for name, value in config.values)


def _draw(ceilings: Ceilings, theme: Theme) -> Figure:
    lines = curves(ceilings)
    probes = list(dict.fromkeys(op for op, _ in lines))
    built = sorted({how for _, how in lines}, key=lambda how: (how.endswith(STREAMING), how))
    plain = list(dict.fromkeys(how.removesuffix(STREAMING) for how in built))
    styles: dict[str, dict[str, Any]] = {
        how: {
            "color": theme.hue(plain.index(how.removesuffix(STREAMING))),
            "linestyle": LINES[1] if how.endswith(STREAMING) else LINES[0],
        }
        for how in built
    }
    figure, panes = panels(theme, 4.6, len(probes), legend_rows=-(-len(built) // 6))
    values = [value for points in lines.values() for _, value in points]
    for probe, axes in zip(probes, panes):
        axes.set_xscale("log", base=2)
        axes.set(yscale="log", ylim=(0.75 * min(values), 1.8 * max(values)))
        for (op, how), points in lines.items():
            if op == probe:
                x, y = [footprint for footprint, _ in points], [value for _, value in points]
                axes.plot(x, y, linewidth=1.6, marker="o", markersize=3, **styles[how])
        _finish(axes, theme, ceilings, probe)
        if axes is not panes[0]:
            axes.yaxis.set_major_formatter(NullFormatter())
    for how in built:
        panes[0].plot([], [], label=how, **styles[how])
    legend(panes[0], theme, columns=6)
    return figure


def _finish(axes: Axes, theme: Theme, ceilings: Ceilings, probe: str) -> None:
    """The levels with their plateaus (which are those of the copy) and knees, and the scales."""
    smallest, largest = (ceilings.bandwidths[0].footprint / 1.5, ceilings.curve()[-1][0] * 1.5)
    start, top = smallest, axes.get_ylim()[1]
    for level in ceilings.levels:
        stop = level.capacity or largest
        if probe == "copy":
            axes.plot([start, stop], [level.bandwidth] * 2, color=theme.ink, linewidth=6, alpha=0.13, zorder=1)
        middle = ((start * stop) ** 0.5, 0.94 * top)
        axes.text(*middle, level.name, ha="center", va="top", fontsize=8.5, color=theme.ink, path_effects=halo(theme))
        if level.capacity:
            axes.axvline(level.capacity, color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)))
        start = stop
    axes.set_xlim(smallest, largest)
    axes.set_xticks([16 * 1024 * 16**step for step in range(8) if smallest < 16 * 1024 * 16**step < largest])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(units.size(value))))
    log_scale(axes.yaxis, units.bandwidth)
    axes.set_xlabel(f"{probe}, footprint")
