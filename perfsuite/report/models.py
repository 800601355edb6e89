"""Models: the time of a forward pass by default, tuned, and where every workload would touch its ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from perfsuite import units
from perfsuite.report.evidence import Evidence
from perfsuite.report.picture import Picture, Theme, legend, log_scale, margin, note_row, plot
from perfsuite.report.section import NONE, Cell, Grid, Section, cells
from perfsuite.report.winners import Winner

# More rows than this are no picture but a table, and that is there too.
MOST = 40


@dataclass(frozen=True)
class ModelTime:
    """Seconds that one forward pass of a model spends in its tuned workloads of one dtype: calls times each.

    Only the `counted` workloads have all of these times; `left_out` have not. `ideal` needs the ceilings.
    """

    model: str
    dtype: str
    counted: int
    left_out: int
    default: float
    tuned: float
    ideal: float | None

    @property
    def label(self) -> str:
        return f"{self.model} {self.dtype}"


def model_times(found: Sequence[Winner]) -> tuple[ModelTime, ...]:
    """Per model and dtype, the one with most time to gain over the default first."""
    grouped: dict[tuple[str, str], list[tuple[Winner, int]]] = {}
    for winner in found:
        for model, calls in winner.models:
            grouped.setdefault((model, winner.entry.workload.dtype), []).append((winner, calls))
    rows = []
    for (model, dtype), parts in grouped.items():
        timed = [(w, calls, w.default.seconds) for w, calls in parts if w.default is not None]
        if not timed:
            continue
        ideals = [calls * w.ideal_seconds for w, calls, _ in timed if w.ideal_seconds is not None]
        rows.append(
            ModelTime(
                model=model,
                dtype=dtype,
                counted=len(timed),
                left_out=len(parts) - len(timed),
                default=sum(calls * seconds for _, calls, seconds in timed),
                tuned=sum(calls * w.entry.seconds for w, calls, _ in timed),
                ideal=sum(ideals) if len(ideals) == len(timed) else None,
            )
        )
    return tuple(sorted(rows, key=lambda row: row.tuned / row.default))


def section(evidence: Evidence, found: Sequence[Winner]) -> Section | None:
    times = model_times(found)
    if not times:
        return None
    picture = Picture(
        "models",
        "Ideal, tuned and default time of a forward pass",
        "Log scale: a distance is a ratio. Ideal is where every workload touches its ceiling, so the distance from "
        "ideal to tuned is the logarithm of 1 / efficiency.",
        partial(_draw, times[:MOST]),
    )
    columns = ("Model", "word"), ("Default", "number"), ("Tuned", "number"), ("Gain", "number"), ("Ideal", "number")
    grid = Grid(
        (*columns, ("Of ideal", "number"), ("Workloads", "number")),
        tuple(
            cells(
                m.label,
                units.seconds(m.default),
                units.seconds(m.tuned),
                units.ratio(m.default / m.tuned),
                NONE if m.ideal is None else units.seconds(m.ideal),
                NONE if m.ideal is None else units.percent(m.ideal / m.tuned),
                Cell(str(m.counted), f"{m.left_out} not timed" if m.left_out else ""),
            )
            for m in times
        ),
    )
    words = "Calls × time of the tuned workloads of each model and dtype, not the whole model."
    return Section("models", "What it is worth to models", (words,), (picture,), (grid,))


def _draw(models: Sequence[ModelTime], theme: Theme) -> Figure:
    labels = [m.label for m in models]
    figure, axes = plot(theme, 1.25 + 0.34 * len(models), margin(labels), 2.1, legend_rows=1)
    axes.set_xscale("log")
    default, tuned, ideal = theme.muted, theme.hue(0), theme.hue(2)
    for row, model in enumerate(models):
        ends = [time for time in (model.ideal, model.tuned, model.default) if time is not None]
        axes.plot([min(ends), max(ends)], [row, row], color=theme.grid, linewidth=5, solid_capstyle="round", zorder=2)
        gain = f"{units.ratio(model.default / model.tuned)} faster" if model.tuned < model.default else "no gain"
        share = f", {units.percent(model.ideal / model.tuned)} of ideal" if model.ideal is not None else ""
        note_row(axes, row, gain + share, theme.ink)
    rows = range(len(models))
    axes.scatter(
        [m.default for m in models],
        rows,
        s=46,
        facecolor=theme.surface,
        edgecolor=default,
        linewidth=1.6,
        label="default",
        zorder=3,
    )
    axes.scatter([m.tuned for m in models], rows, s=52, color=tuned, label="tuned", zorder=5)
    known = [(m.ideal, row) for row, m in enumerate(models) if m.ideal is not None]
    axes.scatter(
        [x for x, _ in known],
        [y for _, y in known],
        s=90,
        marker="|",
        linewidth=2.2,
        color=ideal,
        label="ideal",
        zorder=4,
    )
    axes.set_yticks(list(rows), labels)
    axes.tick_params(axis="y", labelcolor=theme.ink)
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.grid(False, axis="y")
    log_scale(axes.xaxis, units.seconds)
    axes.set_xlabel("time per forward pass in these workloads")
    legend(axes, theme)
    return figure
