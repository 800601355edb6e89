"""Where the time of the last tuning went: builds above, timing below, and how far the two overlapped."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from perfsuite import units
from perfsuite.report.evidence import Evidence
from perfsuite.report.picture import Picture, Theme, legend, note_row, plot
from perfsuite.report.section import Grid, Section, cells
from perfsuite.timeline import BUILD, MEASURE, WAITS, Span, Timeline

_SAID = {
    "probes": "ceilings",
    "survey": "survey",
    "search": "search",
    "race": "races",
    "wait": "waiting for a build",
    "turn": "waiting for another process",
}
# Gaps shorter than this share of the whole are not seen: neighbours of one colour are drawn as one.
_UNSEEN = 0.0004


def blocks(spans: Iterable[Span], gap: float) -> dict[str, list[tuple[float, float]]]:
    """(start, length) of one lane's spans by what they are; neighbours that less than `gap` seconds part are merged.

    Waits shorter than that are left out.
    """
    seen = [s for s in spans if s.what not in WAITS or s.seconds >= gap]
    merged: dict[str, list[tuple[float, float]]] = {}
    last = ""
    for span in sorted(seen, key=lambda s: s.start):
        same = merged.setdefault(span.what, [])
        if span.what == last and span.start - sum(same[-1]) < gap:
            same[-1] = same[-1][0], max(sum(same[-1]), span.end) - same[-1][0]
        else:
            same.append((span.start, span.seconds))
        last = span.what
    return merged


def _draw(timeline: Timeline, theme: Theme) -> Figure:
    figure, axes = plot(theme, 2.3, left=0.85, right=1.0, legend_rows=1)
    whole = max(timeline.seconds, timeline.budget or 0.0)
    builds, timing = (
        blocks((span for span in timeline.spans if span.lane == lane), _UNSEEN * whole) for lane in (BUILD, MEASURE)
    )
    axes.broken_barh(builds.get("build", []), (0.58, 0.72), color=theme.hue(1), linewidth=0, label="builds")
    for at, (what, said) in enumerate(_SAID.items()):
        color = {"wait": theme.grid, "turn": theme.muted}.get(what) or theme.hue((0, 5, 2, 3)[at])
        if what in timing:
            axes.broken_barh(timing[what], (-0.36, 0.72), color=color, linewidth=0, label=said)
    if timeline.budget is not None:
        axes.axvline(timeline.budget, color=theme.ink, linewidth=1.0, linestyle=(0, (4, 3)), label="budget")
    axes.set_yticks([0.94, 0.0], ["builds", "timing"])
    axes.tick_params(axis="y", labelcolor=theme.ink, labelsize=10)
    axes.set(xlim=(0.0, 1.01 * whole), ylim=(-0.55, 1.5), xlabel="since the start")
    axes.grid(False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 1.5, 2, 3, 6, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: units.duration(value)))
    note_row(axes, 0.94, units.duration(timeline.spent["build"]), theme.ink, 9.0)
    note_row(axes, 0.0, units.duration(timeline.measured), theme.ink, 9.0)
    legend(axes, theme)
    return figure


def _words(timeline: Timeline) -> str:
    builds, measured = timeline.spent["build"], timeline.measured
    budget = "" if timeline.budget is None else f" of a budget of {units.duration(timeline.budget)}"
    said = f"The last tuning that measured anything ({units.day(timeline.created)}) took "
    said += f"{units.duration(timeline.seconds)}{budget}."
    if builds == 0.0:
        return f"{said} No build ran beside the timing: none was needed, or no core was free for it."
    one_by_one = builds + measured
    return (
        f"{said} Builds took {units.duration(builds)} on a core that the timing leaves free, checking, timing and "
        f"racing {units.duration(measured)}. One after the other that is {units.duration(one_by_one)}, at best "
        f"{units.duration(max(builds, measured))}; it was {units.duration(one_by_one - timeline.overlap)}, for "
        f"{units.percent(timeline.overlap / min(builds, measured))} of the shorter ran beside the longer."
    )


def _table(timeline: Timeline) -> Grid:
    spent = timeline.spent
    named = {**_SAID, "rest": "the rest: starting, planning, storing"}
    rows = [
        cells(said, units.duration(spent[what]), units.percent(spent[what] / timeline.seconds))
        for what, said in named.items()
        if spent[what] > 0.0
    ]
    rows.append(cells("builds, beside these", units.duration(spent["build"]), ""))
    return Grid((("what", "text"), ("time", "number"), ("share", "number")), tuple(rows))


def section(evidence: Evidence) -> Section | None:
    timeline = evidence.timeline
    if timeline is None or not timeline.spans or timeline.policy != str(evidence.policy):
        return None
    caption = "What the two lanes of a tuning did; where the lower one is pale or empty, nothing could be timed."
    picture = Picture("timeline", "Builds and timing", caption, partial(_draw, timeline))
    return Section("spending", "Where the time of tuning went", (_words(timeline),), (picture,), (_table(timeline),))
