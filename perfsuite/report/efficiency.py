"""The winners: their table, and the share of its binding ceiling that each one reaches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from perfsuite import units
from perfsuite.report.evidence import Evidence
from perfsuite.report.picture import MARKERS, Picture, Theme, legend, margin, note_row, plot
from perfsuite.report.section import NONE, Cell, Grid, Section, cells
from perfsuite.report.winners import Timing, Winner

# More rows than this are no picture but a table, and that is there too.
MOST = 48
# A share above this is no noise of a good measurement.
BEYOND = 1.05
COLUMNS = (
    ("Workload", "code"),
    ("Kernel", "code"),
    ("Time", "number"),
    ("Floor", "number"),
    ("Over default", "number"),
    ("Over inductor", "number"),
    ("Of ceiling", "number"),
    ("Bound by", "word"),
    ("Ties", "number"),
    ("Verdict", "verdict"),
)


def section(evidence: Evidence, found: Sequence[Winner]) -> Section:
    if not found:
        return Section("winners", "Winners", ("No winner yet: `perfsuite tune` races the best configs of a workload.",))
    families = dict.fromkeys(winner.family for winner in found)
    grids = [
        Grid(COLUMNS, tuple(_winner_row(winner) for winner in found if winner.family == family), title=family)
        for family in families
    ]
    defaults = [f"`{kernel}`" for kernel in sorted(evidence.defaults) if kernel.partition("/")[0] in families]
    words = [
        f"Times are those of {evidence.machine.cpu}; compare the ratios. Default: {', '.join(defaults) or 'none'}.",
        "FASTER and TIE are verdicts of paired rounds against the default kernel; DEFAULT means that nothing beat it. "
        "A ratio marked ~ compares times of different runs. Ties are finalists that the race found to be within 1 % of "
        "the winner.",
        "Floor: what moving the op's tensors once takes at the bandwidth measured where they live; under it the passes "
        "over memory, reads + writes in units of the largest tensor.",
    ]
    if any((winner.share or 0.0) > BEYOND for winner in found):
        words.append(
            "Shares above 100 % mean that a kernel was faster than the probes: these were disturbed, or their space "
            "lacks something."
        )
    pictures = _pictures(evidence, found)
    return Section("winners", "Winners", tuple(words), pictures, tuple(grids))


def _pictures(evidence: Evidence, found: Sequence[Winner]) -> tuple[Picture, ...]:
    rated = sorted((w for w in found if w.share is not None), key=lambda w: w.share or 0.0)
    if not rated:
        return ()
    left_out = f" The {MOST} of {len(rated)} with most to gain." if len(rated) > MOST else ""
    return (
        Picture(
            "efficiency",
            "Each winner's share of the ceiling that binds it",
            "Filled mark: the winner; ring: the default kernel on the same workload. What is left to 100 % could still "
            f"be gained.{left_out}",
            partial(_draw, evidence, rated[:MOST]),
        ),
    )


def _winner_row(winner: Winner) -> tuple[Cell, ...]:
    entry = winner.entry
    used_by = ", ".join(f"{model} ×{calls}" for model, calls in winner.models)
    beaten = ""
    if winner.challenger is not None:
        other = winner.challenger
        beaten = f"next: {_file(other.kernel)} {units.ratio(entry.seconds / other.seconds)}"
    return cells(
        Cell(str(entry.workload), used_by),
        Cell(_file(entry.kernel), str(entry.config) if entry.config.values else ""),
        units.seconds(entry.seconds),
        _floor(winner),
        _over(winner, winner.default),
        _over(winner, winner.inductor),
        NONE if winner.share is None else units.percent(winner.share),
        winner.binding or NONE,
        Cell(str(len(entry.ties)), ", ".join(dict.fromkeys(_file(k) for k, _ in entry.ties if k != entry.kernel))),
        Cell(str(entry.verdict), beaten),
    )


def _file(kernel: str) -> str:
    return kernel.rpartition("/")[2]


def _floor(winner: Winner) -> Cell | str:
    if winner.moving_seconds is None:
        return NONE
    reads, writes = winner.memory_passes
    return Cell(units.seconds(winner.moving_seconds), f"{reads:.3g} + {writes:.3g} passes")


def _over(winner: Winner, other: Timing | None) -> str:
    if other is None:
        return NONE
    return f"{'' if other.paired else '~'}{units.ratio(other.seconds / winner.entry.seconds)}"


def _draw(evidence: Evidence, rated: Sequence[Winner], theme: Theme) -> Figure:
    labels = [w.label for w in rated]
    figure, axes = plot(theme, 1.0 + 0.235 * len(rated), margin(labels, 7.5), 1.5, legend_rows=1)
    for at, family in enumerate(evidence.families):
        own = [(row, w) for row, w in enumerate(rated) if w.family == family]
        if not own:
            continue
        hue, marker = theme.hue(at), MARKERS[at % len(MARKERS)]
        for row, w in own:
            share, base = w.share or 0.0, _default_share(w)
            axes.plot([0.0, share], [row, row], color=hue, linewidth=1.2, alpha=0.35, zorder=2)
            if base is not None:
                axes.plot(base, row, "o", ms=4.5, mfc=theme.surface, mec=hue, mew=1.0, zorder=3)
        x = [w.share or 0.0 for _, w in own]
        axes.scatter(x, [row for row, _ in own], s=34, color=hue, marker=marker, label=family, zorder=4)
    for row, w in enumerate(rated):
        note_row(axes, row, w.binding or "", theme.muted, 7.5)
    axes.set_yticks(range(len(rated)), labels)
    axes.tick_params(axis="y", labelsize=7.5, labelcolor=theme.ink)
    axes.set_ylim(len(rated) - 0.4, -0.6)
    axes.set_xlim(0.0, max(1.02, *(1.05 * (w.share or 0.0) for w in rated)))
    axes.axvline(1.0, color=theme.ink, linewidth=1.2, zorder=1.5)
    axes.grid(False, axis="y")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100.0 * value:.0f} %"))
    axes.set_xlabel("share of the binding ceiling")
    legend(axes, theme)
    return figure


def _default_share(winner: Winner) -> float | None:
    if winner.default is None or winner.ideal_seconds is None:
        return None
    return winner.ideal_seconds / winner.default.seconds
