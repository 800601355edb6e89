"""Softmax algorithms against the length of a row: the Two-Pass experiment (Dukhan, Ablavatski, arXiv 2001.04438)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from perfsuite import units
from perfsuite.kernel import Config
from perfsuite.op import Scalar
from perfsuite.report.bandwidth import LINES
from perfsuite.report.evidence import Evidence
from perfsuite.report.picture import MARKERS, Picture, Theme, legend, panels
from perfsuite.report.section import Section

FEW_ROWS = 4
LENGTHS = 3
TITLE = "Softmax algorithms"
MISSING = f"The Two-Pass experiment needs {LENGTHS} lengths or more on at most {FEW_ROWS} rows, such as these:"
COMMANDS = tuple(f"perfsuite tune 'softmax[rows=1,cols={1 << power},f32]'" for power in (16, 20, 24))
COLUMNS = 4
YTICKS = (0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
TWO_PASS = "native_two_pass_pairs"
THREE_PASS = ("native_three_pass_recompute", "native_three_pass_reload")
# What the abstract of arXiv 2001.04438 claims out of cache on its own machine (Skylake-X), as a gain in speed.
CLAIMS = {"avx512": 0.28, "avx2": 0.18}
WIDTHS: Mapping[Scalar, str] = {256: "avx2", 512: "avx512"}


@dataclass(frozen=True)
class Line:
    """Best seconds of one kernel built for one ISA on rows of `lengths` elements."""

    kernel: str
    isa: str
    seconds: Mapping[int, float]

    @property
    def label(self) -> str:
        return f"{self.kernel.removeprefix('native_').replace('_', ' ')} {self.isa}".strip()


@dataclass(frozen=True)
class Experiment:
    """All lines of one dtype and number of threads, and the seconds of a copy of a row of each length.

    None for a copy where the bandwidth is unknown.
    """

    dtype: str
    threads: int
    lines: tuple[Line, ...]
    copy: Mapping[int, float | None]

    @property
    def label(self) -> str:
        return f"{self.dtype}, {units.several(self.threads, 'thread')}"

    @property
    def copied(self) -> bool:
        return all(self.copy.values())

    def relative(self, line: Line) -> Mapping[int, float]:
        """The line's times over a copy of as many bytes; over the fastest line's where copies were not measured."""
        fastest = {n: min(o.seconds.get(n, float("inf")) for o in self.lines) for n in line.seconds}
        floor = {n: self.copy[n] or fastest[n] if self.copied else fastest[n] for n in line.seconds}
        return {n: seconds / floor[n] for n, seconds in line.seconds.items()}


def isa_of(config: Config) -> str:
    """The ISA that a config names; inductor's is the width of its vectors."""
    values = dict(config.values)
    return str(values.get("isa") or WIDTHS.get(values.get("simdlen", 0), ""))


def experiments(evidence: Evidence) -> list[Experiment]:
    """By dtype, f32 first, and threads: one, as many as the report is about, and all."""
    counts = sorted({1, evidence.policy.threads, evidence.machine.cores})
    found = [
        experiment
        for threads in counts
        for experiment in _experiments(replace(evidence, policy=replace(evidence.policy, threads=threads)))
    ]
    return sorted(found, key=lambda e: (e.dtype != "f32", e.dtype, e.threads))


def _experiments(evidence: Evidence) -> list[Experiment]:
    """The dtypes with at least LENGTHS lengths of few rows under the policy; only lines that cover as many."""
    found: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
    copies: dict[str, dict[int, float | None]] = {}
    for workload, kernels in evidence.times.items():
        sizes = dict(workload.sizes)
        few = sizes.get("rows", 0) in range(1, FEW_ROWS + 1) and "cols" in sizes
        if workload.op != "softmax" or not few:
            continue
        per_row, op = sizes["rows"], evidence.ops.get("softmax")
        copied = evidence.ceilings.moving_seconds(op, workload) if op else None
        copies.setdefault(workload.dtype, {})[sizes["cols"]] = copied / per_row if copied else None
        for kernel, configs in kernels.items():
            for config, seconds in configs.items():
                line = found.setdefault(workload.dtype, {}).setdefault((kernel.rpartition("/")[2], isa_of(config)), {})
                line[sizes["cols"]] = min(seconds / per_row, line.get(sizes["cols"], float("inf")))
    shown = []
    for dtype, lines in found.items():
        long = [Line(*key, dict(sorted(s.items()))) for key, s in sorted(lines.items()) if len(s) >= LENGTHS]
        if long:
            shown.append(Experiment(dtype, evidence.policy.threads, tuple(long), copies[dtype]))
    return shown


def findings(experiment: Experiment) -> list[str]:
    """Where the two-pass kernel beats both three-pass ones and by how much, per ISA, beside the paper's claim."""
    by_name = {(line.kernel, line.isa): line.seconds for line in experiment.lines}
    said = []
    for isa in sorted({line.isa for line in experiment.lines if line.kernel == TWO_PASS}):
        two, three = by_name[TWO_PASS, isa], [by_name.get((kernel, isa), {}) for kernel in THREE_PASS]
        common = [length for length in two if all(length in other for other in three)]
        if not common:
            continue
        gains = {length: min(other[length] for other in three) / two[length] - 1.0 for length in common}
        claim = f" The paper claims up to {units.percent(CLAIMS[isa])}." if isa in CLAIMS else ""
        said.append(f"{isa}, {experiment.label}: {_gained(gains)}{claim}")
    return said


def _gained(gains: Mapping[int, float]) -> str:
    top = max(gains, key=gains.__getitem__)
    if gains[top] <= 0.0:
        return (
            f"the two-pass kernel beats both three-pass kernels at none of {len(gains)} lengths; it comes nearest at "
            f"{top:,} elements, {units.percent(-gains[top])} slower."
        )
    won = sorted(length for length, gain in gains.items() if gain > 0.0)
    which = f" ({', '.join(f'{length:,}' for length in won)})" if len(won) < len(gains) else ""
    return (
        f"the two-pass kernel beats both three-pass kernels at {len(won)} of {len(gains)} lengths{which}, by up to "
        f"{units.percent(gains[top])} (at {top:,} elements)."
    )


def pictures(evidence: Evidence) -> list[Picture]:
    """One of each dtype, with a panel for each number of threads."""
    found = experiments(evidence)
    return [_picture([e for e in found if e.dtype == dtype]) for dtype in dict.fromkeys(e.dtype for e in found)]


def _picture(panes: Sequence[Experiment]) -> Picture:
    dtype, copied = panes[0].dtype, all(pane.copied for pane in panes)
    if not copied:  # for one number of threads: then all panels are relative to the fastest
        panes = [replace(pane, copy=dict.fromkeys(pane.copy)) for pane in panes]
    return Picture(
        f"algorithms-{dtype}",
        f"Softmax algorithms against row length, {dtype}",
        "Best config of each kernel and ISA on 1 to 4 rows; dashed and hollow: AVX2. "
        + (
            "Time is relative to a copy of the same bytes: 1 is the floor of a kernel that reads and writes once."
            if copied
            else "Time is relative to the fastest kernel; with `perfsuite tune probes` it would be to a copy."
        ),
        partial(_draw, panes),
    )


def _draw(panes: Sequence[Experiment], theme: Theme) -> Figure:
    lines = sorted({(line.kernel, line.isa): line for pane in panes for line in pane.lines}.items())
    figure, several = panels(theme, 5.6, len(panes), legend_rows=-(-len(lines) // COLUMNS))
    limits = _limits(panes)
    for axes, pane in zip(several, panes):
        _plot(axes, pane, [line for _, line in lines], theme)
        axes.text(0.98, 0.97, pane.label, transform=axes.transAxes, ha="right", va="top", color=theme.ink)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_ylim(*limits)
        axes.axhline(1.0, color=theme.ink, linewidth=1.0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _length(value)))
        axes.set_yticks([tick for tick in YTICKS if limits[0] <= tick <= limits[1]])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axes.set_xlabel("elements per row")
    for axes in several[1:]:
        axes.tick_params(labelleft=False)
    several[0].set_ylabel("time over a copy" if panes[0].copied else "time over the fastest")
    legend(several[0], theme, columns=COLUMNS)
    return figure


def _plot(axes: Axes, pane: Experiment, lines: Sequence[Line], theme: Theme) -> None:
    """The pane's own times of each of the `lines`; an empty line where it has none, so that the legend is whole."""
    kernels = list(dict.fromkeys(line.kernel for line in lines))
    own = {line.label: pane.relative(line) for line in pane.lines}
    for line in lines:
        ratios, at = own.get(line.label, {}), kernels.index(line.kernel)
        axes.plot(
            list(ratios),
            list(ratios.values()),
            color=theme.hue(at),
            marker=MARKERS[at % len(MARKERS)],
            markersize=4.5,
            markerfacecolor=theme.surface if line.isa == "avx2" else theme.hue(at),
            linestyle=LINES[line.isa == "avx2"],
            linewidth=2.4 if line.kernel == TWO_PASS else 1.4,
            label=line.label,
        )


def _limits(panes: Sequence[Experiment]) -> tuple[float, float]:
    """The same in all panels."""
    ratios = [ratio for pane in panes for line in pane.lines for ratio in pane.relative(line).values()]
    return min(0.95, 0.95 * min(ratios)), 1.1 * max(ratios)


def _length(elements: float) -> str:
    """`4 Ki`, `1 Mi`."""
    for unit, scale in (("Mi", 1 << 20), ("Ki", 1 << 10)):
        if elements >= scale:
            return f"{elements / scale:g} {unit}"
    return f"{elements:g}"


def section(evidence: Evidence) -> Section | None:
    found = experiments(evidence)
    if not found:
        timed = any(workload.op == "softmax" for workload in evidence.times)
        return Section("algorithms", TITLE, (MISSING,), commands=COMMANDS) if timed else None
    words = [finding for experiment in found for finding in findings(experiment)]
    about = (
        "The Two-Pass algorithm (arXiv 2001.04438) keeps exponentials as pairs of mantissa and exponent and so reads a "
        "row once less than the three-pass ones. The claim is of its abstract: out of cache, on another machine; "
        "figures here are the best medians of the search."
    )
    return Section("algorithms", TITLE, (about, *words), tuple(pictures(evidence)))
