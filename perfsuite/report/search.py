"""How well the searches do on recorded spaces: the leaderboard as a table, regret as a picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from perfsuite import units
from perfsuite.leaderboard import RACING, Leaderboard, Standing, Way, equal_ways
from perfsuite.report.picture import Picture, Theme, legend, log_scale, panels, plot
from perfsuite.report.section import Grid, Section, cells

COLUMNS = (
    ("search", "word"),
    ("to 5 %", "number"),
    ("mean to 5 %", "number"),
    ("where few", "number"),
    ("to 1 %", "number"),
    ("mean to 1 %", "number"),
    ("time to 5 %", "number"),
    ("regret at 40", "number"),
    ("regret of pick", "number"),
    ("false winners", "number"),
    ("tables within", "number"),
)
# Regret is drawn between these, on a log scale that 0 does not fit.
_LEAST, _MOST = 0.003, 10.0
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_NEAR = (0.05, 0.01)
# Lines of other tuners, which may all be grey.
_DASHES = ((4.0, 1.5), (1.2, 1.2))


def row(standing: Standing) -> tuple[str, ...]:
    """What COLUMNS say of one search."""
    s = standing
    return (
        s.name,
        f"{s.to_5:.0f}",
        f"{s.mean_to_5:.1f}",
        "–" if s.few_to_5 is None else f"{s.few_to_5:.1f}",
        f"{s.to_1:.0f}",
        f"{s.mean_to_1:.1f}",
        units.seconds(s.seconds_to_5),
        units.percent(s.regret),
        units.percent(s.pick_regret),
        units.percent(s.false_winners),
        units.percent(s.tables_within),
    )


def drawn(board: Leaderboard) -> list[Standing]:
    """The default first, our other searches but the exhaustive one, and the best of each other tuner's."""
    ours = [s for s in board.standings if not s.tuner and s.name != "exhaustive"]
    ours.sort(key=lambda s: s.name != board.default)
    best: dict[str, Standing] = {}
    for standing in board.standings:
        if standing.tuner:
            best.setdefault(standing.tuner, standing)
    return [*ours, *best.values()]


def repeats_of(way: Way) -> str:
    return f"up to {way.repeats:,} of each" if way.name == RACING else f"{way.repeats} of each"


def pictures(board: Leaderboard) -> list[Picture]:
    return [
        Picture(
            "search",
            "Regret of the searches",
            "How much slower than the optimum the best config found so far is, in the geometric mean over tables and "
            "seeds, against evaluations and against the time that building and timing take. Dashed: within 5 % and "
            "1 %. Of another tuner's strategies the best is drawn.",
            partial(_draw, board),
        ),
        Picture(
            "deciding",
            "False winners against samples",
            "The share of decisions among a search's finalists whose winner is truly over 2 % slower than the best "
            "of them, against the samples of a decision: races of at most so many rounds, and fixed repeats, taken one "
            "config after the other or interleaved. Bars: a standard error. Where more samples do not help, what is "
            "left are the differences between visits and the uncertainty of the truth itself.",
            partial(_draw_ways, board),
        ),
    ][: 2 if board.ways else 1]


def _draw_ways(board: Leaderboard, theme: Theme) -> Figure:
    figure, axes = plot(theme, 3.8, left=0.75, right=0.2, legend_rows=1)
    for at, name in enumerate(dict.fromkeys(way.name for way in board.ways)):
        ways = [way for way in board.ways if way.name == name]
        axes.errorbar(
            [way.samples for way in ways],
            [way.false_winners for way in ways],
            yerr=[way.error for way in ways],
            color=theme.hue(at),
            linewidth=2.4 if name == RACING else 1.5,
            elinewidth=0.8,
            marker="o",
            markersize=4.0,
            label=name,
        )
    axes.set_xscale("log")
    log_scale(axes.xaxis, "{:,.0f}".format)
    axes.set_xlabel("samples of a decision")
    axes.set_ylabel("false winners")
    axes.set_ylim(bottom=0.0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100.0 * value:g} %"))
    legend(axes, theme, columns=3)
    return figure


def _draw(board: Leaderboard, theme: Theme) -> Figure:
    lines = drawn(board)
    columns = 4
    figure, (left, right) = panels(theme, 4.4, 2, left=0.75, right=0.2, legend_rows=-(-len(lines) // columns))
    dashes = itertools.cycle(_DASHES)
    for at, standing in enumerate(lines):
        main = standing.name == board.default
        style: Any = (0, next(dashes)) if standing.tuner else "-"
        for axes, x, regrets in (
            (left, board.evaluations, standing.by_evaluations),
            (right, board.seconds, standing.by_seconds),
        ):
            axes.plot(
                x,
                _clipped(regrets),
                color=theme.hue(at),
                linewidth=2.6 if main else 1.5,
                linestyle=style,
                zorder=5 if main else 3,
                drawstyle="steps-post",
                label=standing.name,
            )
    for axes, words, text in (
        (left, "evaluations", "{:.0f}".format),
        (right, "time of builds and timings", units.seconds),
    ):
        axes.set_xscale("log")
        _regret_axis(axes, theme, [regret for line in lines for regret in line.by_evaluations])
        axes.set_xlabel(words)
        axes.margins(x=0.0)
        log_scale(axes.xaxis, text)
    left.set_ylabel("slower than the optimum")
    right.tick_params(axis="y", labelleft=False)
    legend(left, theme, columns=columns)
    return figure


def _regret_axis(axes: Axes, theme: Theme, regrets: Sequence[float]) -> None:
    axes.set_yscale("log")
    # Both dashed lines are seen, and no empty decade.
    least, most = min(*regrets, _NEAR[1]), max(*regrets, _NEAR[0])
    axes.set_ylim(0.8 * max(least, _LEAST), 1.25 * min(most, _MOST))
    axes.set_yticks([tick for tick in _TICKS if tick <= axes.get_ylim()[1]])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100.0 * value:g} %"))
    axes.yaxis.set_minor_locator(NullLocator())
    for near in _NEAR:
        axes.axhline(near, color=theme.muted, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)


def _clipped(regrets: Sequence[float]) -> list[float]:
    return [min(max(regret, _LEAST), _MOST) for regret in regrets]


def section(board: Leaderboard | None) -> Section | None:
    if board is None:
        return None
    configs = sum(table.configs for table in board.tables)
    words = (
        f"Every search was played {units.several(board.repeats, 'time')} on each of "
        f"{units.several(len(board.tables), 'completely recorded space')} ({configs:,} configs in all), with noise "
        "resampled from the raw samples of half of the passes; the other half is the truth. The first columns are the "
        "evaluations until the best found is within 5 % and 1 % of the optimum: median and geometric mean, and this "
        "where at most one config in ten is within 5 %. "
        "A seeded search is told what it found on the kernel's other tables, as tuning is of other workloads. "
        "`perfsuite lab score` makes this again.",
        "A false winner is a pick that is truly more than 2 % slower than the best of what was evaluated; the regret "
        "of the pick is against the whole space. Our searches pick by a race, other tuners by the lowest median seen.",
    )
    grids = (
        Grid(COLUMNS, tuple(cells(*row(s)) for s in board.standings), "Searches"),
        Grid(
            (("to decide among finalists", "text"), ("repeats", "number"), ("samples", "number"), ("false", "number")),
            tuple(
                cells(w.name, repeats_of(w), f"{w.samples:.0f}", units.percent(w.false_winners))
                for w in equal_ways(board.ways)
            ),
            "Racing against fixed repeats",
        ),
        Grid(
            (("target", "text"), ("found", "text"), ("", "word")),
            tuple(cells(t.words, t.figure, t.verdict) for t in board.targets),
            "Targets",
        ),
        Grid(
            (("space", "code"), ("configs", "number"), ("within 5 %", "number")),
            tuple(cells(t.name, str(t.configs), str(t.within_5)) for t in board.tables),
            "The spaces",
        ),
    )
    return Section("search", "How well the search does", words, tuple(pictures(board)), grids)
