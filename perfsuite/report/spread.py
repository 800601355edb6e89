"""How much tuning matters: the times of all configs tried, relative to the best, one picture per family."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from perfsuite import units
from perfsuite.op import Workload
from perfsuite.report.evidence import Evidence
from perfsuite.report.picture import Picture, Theme, legend, margin, note_row, plot
from perfsuite.report.section import Section
from perfsuite.report.winners import geometric_mean

MOST = 24
# Slower configs than this are drawn at the edge.
FARTHEST = 30.0


@dataclass(frozen=True)
class Spread:
    """Every config tried on a workload: (kernel, time over the best time), fastest first; `default` likewise."""

    workload: Workload
    configs: tuple[tuple[str, float], ...]
    default: float | None

    @property
    def median(self) -> float:
        return statistics.median(ratio for _, ratio in self.configs)


def spreads(evidence: Evidence) -> dict[str, list[Spread]]:
    """Per family, the workloads on which more than one config was timed, most configs first."""
    found: dict[str, list[Spread]] = {}
    for workload, kernels in evidence.times.items():
        timed = sorted((s, kernel) for kernel, configs in kernels.items() for s in configs.values())
        family = evidence.family(workload)
        if len(timed) < 2 or family == "probes":
            continue
        best = timed[0][0]
        default = min((s / best for s, kernel in timed if kernel in evidence.defaults), default=None)
        configs = tuple((kernel, seconds / best) for seconds, kernel in timed)
        found.setdefault(family, []).append(Spread(workload, configs, default))
    return {family: sorted(rows, key=lambda s: -len(s.configs)) for family, rows in sorted(found.items())}


def pictures(evidence: Evidence) -> list[Picture]:
    shown = []
    for family, rows in spreads(evidence).items():
        middle = units.ratio(geometric_mean([row.median for row in rows]))
        left_out = f" Drawn: the {MOST} of {len(rows)} workloads with most configs." if len(rows) > MOST else ""
        shown.append(
            Picture(
                f"spread-{family}",
                f"Every config tried: {family}",
                f"The median config takes {middle} the time of the best.{left_out}",
                partial(_draw, rows[:MOST]),
            )
        )
    return shown


def _draw(rows: Sequence[Spread], theme: Theme) -> Figure:
    kernels = sorted({kernel for row in rows for kernel, _ in row.configs})
    labels = [str(row.workload) for row in rows]
    figure, axes = plot(theme, 1.1 + 0.36 * len(rows), margin(labels, 7.5), 1.4, legend_rows=-(-len(kernels) // 4))
    axes.set_xscale("log")
    for at, kernel in enumerate(kernels):
        points = [
            (min(ratio, FARTHEST), line + _jitter(number))
            for line, row in enumerate(rows)
            for number, (name, ratio) in enumerate(row.configs)
            if name == kernel
        ]
        axes.scatter(
            [x for x, _ in points],
            [y for _, y in points],
            s=11,
            color=theme.hue(at),
            alpha=0.6,
            linewidth=0,
            label=kernel.rpartition("/")[2],
        )
    for line, row in enumerate(rows):
        axes.plot([min(row.median, FARTHEST)] * 2, [line - 0.36, line + 0.36], color=theme.ink, linewidth=1.5)
        if row.default is not None:
            axes.plot(
                min(row.default, FARTHEST), line, "D", ms=5.5, color=theme.ink, mec=theme.surface, mew=0.8, zorder=4
            )
        note_row(axes, line, f"{len(row.configs)}, median {units.ratio(row.median)}", theme.muted, 7.5)
    axes.set_yticks(range(len(rows)), labels)
    axes.tick_params(axis="y", labelsize=7.5, labelcolor=theme.ink)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    slowest = min(FARTHEST, max(ratio for row in rows for _, ratio in row.configs))
    axes.set_xlim(0.97, max(1.5, 1.05 * slowest))
    axes.grid(False, axis="y")
    axes.set_xticks([tick for tick in (1, 1.5, 2, 3, 5, 10, 20, 30) if tick <= max(1.5, slowest)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("time over the best time")
    legend(axes, theme, columns=4)
    return figure


def _jitter(number: int) -> float:
    """Low-discrepancy places across a row: the same picture from the same trials."""
    return (number * 0.618034 % 1.0 - 0.5) * 0.62


def section(evidence: Evidence) -> Section | None:
    shown = pictures(evidence)
    if not shown:
        return None
    rows = [row for found in spreads(evidence).values() for row in found]
    middle = units.ratio(geometric_mean([row.median for row in rows]))
    words = (
        f"Over {units.several(len(rows), 'workload')}, the median of the configs tried takes {middle} the time of the "
        "best. One dot per kernel and config, on a log scale; the diamond is the default kernel, the bar the median. "
        "On the right: how many configs were tried."
    )
    return Section("spread", "How much tuning matters", (words,), tuple(shown))
