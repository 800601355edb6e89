"""Softmax algorithms against the length of a row: the Two-Pass experiment (Dukhan, Ablavatski, arXiv 2001.04438)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from perfsuite import units
from perfsuite.kernel import Config
from perfsuite.op import Scalar
from perfsuite.report.bandwidth import LINES
from perfsuite.report.evidence import Evidence
from perfsuite.report.picture import MARKERS, Picture, Theme, legend, plot
from perfsuite.report.section import Section

FEW_ROWS = 4
LENGTHS = 3
TITLE = "Softmax algorithms"
MISSING = f"The Two-Pass experiment needs {LENGTHS} lengths or more on at most {FEW_ROWS} rows, such as these:"
COMMANDS = tuple(f"perfsuite tune 'softmax[rows=1,cols={1 << power},f32]'" for power in (16, 20, 24))
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
    """All lines of one dtype, and the seconds of a copy of a row of each length (None where not measured)."""

    dtype: str
    lines: tuple[Line, ...]
    copy: Mapping[int, float | None]


def isa_of(config: Config) -> str:
    """The ISA that a config names; inductor's is the width of its vectors."""
    values = dict(config.values)
    return str(values.get("isa") or WIDTHS.get(values.get("simdlen", 0), ""))


def experiments(evidence: Evidence) -> list[Experiment]:
    """The dtypes with at least LENGTHS lengths of few rows; only lines that cover as many."""
    found: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
    copies: dict[str, dict[int, float | None]] = {}
    for workload, kernels in evidence.times.items():
        sizes = dict(workload.sizes)
        few = sizes.get("rows", 0) in range(1, FEW_ROWS + 1) and "cols" in sizes
        if workload.op != "softmax" or not few:
            continue
        least = evidence.ops["softmax"].least_bytes(workload) if "softmax" in evidence.ops else 0
        bandwidth = evidence.ceilings.bandwidth(least)
        per_row = sizes["rows"]
        copies.setdefault(workload.dtype, {})[sizes["cols"]] = least / bandwidth / per_row if bandwidth else None
        for kernel, configs in kernels.items():
            for config, seconds in configs.items():
                line = found.setdefault(workload.dtype, {}).setdefault((kernel.rpartition("/")[2], isa_of(config)), {})
                line[sizes["cols"]] = min(seconds / per_row, line.get(sizes["cols"], float("inf")))
    shown = []
    for dtype, lines in sorted(found.items()):
        long = [Line(*key, dict(sorted(s.items()))) for key, s in sorted(lines.items()) if len(s) >= LENGTHS]
        if long:
            shown.append(Experiment(dtype, tuple(long), copies[dtype]))
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
        said.append(f"{isa}, {experiment.dtype}: {_gained(gains)}{claim}")
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
    return [
        Picture(
            f"algorithms-{experiment.dtype}",
            f"Softmax algorithms against row length, {experiment.dtype}",
            "Best config of each kernel and ISA on 1 to 4 rows. "
            + (
                "Time is relative to a copy of the same bytes: 1 is the floor of a kernel that reads and writes once."
                if all(experiment.copy.values())
                else "Time is relative to the fastest kernel; with `perfsuite tune probes` it would be to a copy."
            ),
            partial(_draw, experiment),
        )
        for experiment in experiments(evidence)
    ]


def _draw(experiment: Experiment, theme: Theme) -> Figure:
    lines = experiment.lines
    kernels = list(dict.fromkeys(line.kernel for line in lines))
    isas = sorted({line.isa for line in lines}, reverse=True)
    figure, axes = plot(theme, 5.6, legend_rows=-(-len(lines) // 4))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    copied = all(experiment.copy.values())
    for line in lines:
        lengths = list(line.seconds)
        floor = [
            (experiment.copy[length] or 0.0) if copied else min(o.seconds.get(length, float("inf")) for o in lines)
            for length in lengths
        ]
        at = kernels.index(line.kernel)
        axes.plot(
            lengths,
            [line.seconds[length] / below for length, below in zip(lengths, floor)],
            color=theme.hue(at),
            marker=MARKERS[at % len(MARKERS)],
            markersize=4.5,
            linestyle=LINES[isas.index(line.isa) % len(LINES)],
            linewidth=2.4 if line.kernel == TWO_PASS else 1.4,
            label=line.label,
        )
    axes.axhline(1.0, color=theme.ink, linewidth=1.0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_yticks([tick for tick in YTICKS if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.set_xlabel("elements per row")
    axes.set_ylabel("time over a copy" if copied else "time over the fastest")
    legend(axes, theme, columns=4)
    return figure


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
