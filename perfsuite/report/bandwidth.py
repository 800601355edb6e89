"""Bandwidth curve: what the probes reach at every footprint, per ISA and kind of store, and where the knees lie."""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from perfsuite import units
from perfsuite.kernel import Config
from perfsuite.report.evidence import Evidence
from perfsuite.report.picture import Picture, Theme, halo, legend, log_scale, plot, tick
from perfsuite.roofline import BANDWIDTH, Ceilings

LINES = {0: "-", 1: (0, (5, 2)), 2: (0, (1.5, 1.5)), 3: (0, (5, 1.5, 1.5, 1.5))}


def pictures(evidence: Evidence) -> list[Picture]:
    ceilings = evidence.ceilings
    if not ceilings.bandwidths:
        return []
    return [
        Picture(
            "bandwidth",
            "Bandwidth against footprint",
            "The best config of each probe, ISA and kind of store. Horizontal bars are the plateaus of the copy curve, "
            "vertical lines its knees: the capacities that data really gets here, whatever the machine reports.",
            partial(_draw, ceilings),
        )
    ]


def curves(ceilings: Ceilings) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(footprint, bytes/s) of each (probe, how it was built), smallest footprint first."""
    best: dict[tuple[str, str], dict[int, float]] = {}
    for c in ceilings.every:
        if c.kind == BANDWIDTH:
            built = c.isa or c.kernel.rpartition("/")[2]
            points = best.setdefault((c.op, f"{built} streaming" if streams(c.config) else built), {})
            points[c.footprint] = max(c.value, points.get(c.footprint, 0.0))
    return {key: sorted(points.items()) for key, points in sorted(best.items())}


def streams(config: Config) -> bool:
    """Whether a config asks for non-temporal stores."""
    return any(name.startswith("stream") and value not in (False, 0, "plain") for name, value in config.values)


def _draw(ceilings: Ceilings, theme: Theme) -> Figure:
    lines = curves(ceilings)
    figure, axes = plot(theme, 5.6, legend_rows=-(-len(lines) // 4))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    probes = list(dict.fromkeys(op for op, _ in lines))
    built = sorted(
        {how for _, how in lines}, key=lambda how: -max(v for key in lines if key[1] == how for _, v in lines[key])
    )
    for (op, how), points in lines.items():
        axes.plot(
            [footprint for footprint, _ in points],
            [value for _, value in points],
            color=theme.hue(probes.index(op)),
            linestyle=LINES[built.index(how) % len(LINES)],
            linewidth=1.6,
            marker="o",
            markersize=3,
            label=f"{op} {how}",
        )
    start, end = axes.get_xlim()
    axes.set_ylim(0.7 * axes.get_ylim()[0])
    for level in ceilings.levels:
        stop = level.capacity or end
        axes.plot([start, stop], [level.bandwidth] * 2, color=theme.ink, linewidth=6, alpha=0.13, zorder=1)
        holds = f" to {units.size(level.capacity)}" if level.capacity else ""
        axes.annotate(
            f"{level.name} {units.bandwidth(level.bandwidth)}{holds}",
            ((start * stop) ** 0.5, axes.get_ylim()[0]),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=theme.ink,
            path_effects=halo(theme),
        )
        if level.capacity:
            axes.axvline(level.capacity, color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)))
        start = stop
    axes.set_xlim(ceilings.bandwidths[0].footprint / 1.5, end)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(units.size(value))))
    log_scale(axes.yaxis, units.bandwidth)
    axes.set(xlabel="footprint: every byte read or written", ylabel="")
    legend(axes, theme, columns=4)
    return figure
