"""How perfsuite's fastest kernels stand against the floor and against all others, beside their targets; as tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import geometric_mean
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as Grid

from perfsuite import registry, targets, units
from perfsuite.comparison import OURS, Journal, Row
from perfsuite.op import Workload
from perfsuite.targets import Bound, Target

# Shapes named for each target that is missed.
_NAMED = 3
_AT_BEST = (
    "at best: the ratio if every row took what rows of its length take on the shape where they are fastest (-: it is "
    "the only shape). Beyond the target, the kernel's instructions miss it; else it waits for memory, or a call is too "
    "short."
)


@dataclass(frozen=True)
class Ratio:
    """Time over time on one workload, of the kernel with its config.

    `at_best` is what it would be if every row took as long as on the shape where rows of its length are fastest: what
    is left of it when memory is out of the way. None where no other shape with rows of its length was raced.
    """

    workload: str
    kernel: str
    config: str
    value: float
    at_best: float | None


@dataclass(frozen=True)
class Standing:
    """An op on one dtype whose bytes live in one place: the ratios of perfsuite's fastest kernels, the worst first.

    The others are eager, inductor and the peers.
    """

    op: str
    dtype: str
    place: str
    floor: tuple[Ratio, ...]
    other: tuple[Ratio, ...]

    @property
    def target(self) -> Target | None:
        return targets.target(self.op, self.dtype, self.place)

    @property
    def label(self) -> str:
        return f"{self.op} {self.dtype}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "target": None if self.target is None else asdict(self.target)}


def standings(races: Sequence[Sequence[Row]]) -> list[Standing]:
    """Of each op, dtype and place where kernels of perfsuite's own, others and a floor raced together."""
    found: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    seconds: dict[object, list[float]] = defaultdict(list)
    for race in races:
        ours = min((row for row in race if row.role == OURS), key=lambda row: row.seconds, default=None)
        if ours is not None and ours.against_floor is not None and ours.against_other is not None:
            workload = Workload.parse(ours.workload)
            found[workload.op, workload.dtype, targets.place(ours.level)].append(ours)
            like, of_a_row = _of_a_row(ours)
            seconds[like].append(of_a_row)
    order = targets.OPS
    places = (targets.L2, targets.L3, targets.BEYOND)

    def rank(key: tuple[str, str, str]) -> tuple[int, str, int, int]:
        op, dtype, place = key
        return order.index(op) if op in order else len(order), op, dtype != "f32", places.index(place)

    return [
        Standing(*key, *(_ratios(found[key], against, seconds) for against in ("against_floor", "against_other")))
        for key in sorted(found, key=rank)
    ]


def _of_a_row(row: Row) -> tuple[object, float]:
    """What workloads are that differ in the number of rows (or images) alone, and the seconds that one takes."""
    workload = Workload.parse(row.workload)
    (_, count), *lengths = workload.sizes
    return (workload.op, workload.dtype, tuple(lengths)), row.seconds / max(1, count)


def _ratios(rows: Sequence[Row], against: str, seconds: Mapping[object, Sequence[float]]) -> tuple[Ratio, ...]:
    """`seconds` are those that one row takes on each of the shapes with rows of its length."""
    ratios = []
    for row in rows:
        like, of_a_row = _of_a_row(row)
        value = float(getattr(row, against))
        at_best = value * min(seconds[like]) / of_a_row if len(seconds[like]) > 1 else None
        ratios.append(Ratio(row.workload, row.kernel, row.config, value, at_best))
    return tuple(sorted(ratios, key=lambda ratio: -ratio.value))


def mean(ratios: Sequence[Ratio]) -> float:
    return geometric_mean([ratio.value for ratio in ratios])


def show(journal: Journal, console: Console, *, goals: bool) -> None:
    """Every race and the summary; with `goals` the summary alone, each figure beside its target."""
    if not goals:
        for name, race in journal.races.items():
            console.print(_race(name, race), "")
    found = standings(list(journal.races.values()))
    if not found:
        return
    console.print(_summary(found, goals))
    if goals:
        whole = sum(1 for _ in targets.workloads(registry.discover().ops))
        raced = f"{len(journal.races)} of {whole} shapes raced on {journal.machine.cpu}, {journal.policy}."
        console.print(_verdict(found), raced, sep="\n", highlight=False)
        if missed := _missed(found):
            console.print(missed, _AT_BEST, highlight=False)


def to_json(journal: Journal, *, goals: bool) -> list[dict[str, Any]]:
    """Every row of every race; with `goals` the standings."""
    if goals:
        return [standing.to_json() for standing in standings(list(journal.races.values()))]
    return [row.to_json() for race in journal.races.values() for row in race]


def _race(name: str, race: Sequence[Row]) -> Grid:
    grid = Grid(title=_plain(name), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("kernel", "time", "x floor", "x eager", "config"):
        grid.add_column(column, justify="right" if column.startswith(("time", "x ")) else "left", overflow="fold")
    for row in race:
        ratios = ("-" if r is None else f"{r:.2f}" for r in (row.against_floor, row.against_eager))
        grid.add_row(row.kernel, units.seconds(row.seconds), *ratios, _plain(row.config))
    return grid


def _summary(found: Sequence[Standing], goals: bool) -> Grid:
    """Markdown, so that it may be kept as it is printed."""
    grid = Grid(title="perfsuite's fastest against the rest", title_justify="left", box=box.MARKDOWN)
    for column in ("op", "bytes in", "shapes", "x floor", "at worst", "on", "x best other", "at worst", "on"):
        grid.add_column(column, justify="left" if column in ("op", "bytes in", "on") else "right")
    for standing in found:
        cells = [standing.label, standing.place, str(len(standing.floor))]
        goal = standing.target if goals else None
        for ratios, bound in _against(standing, goal):
            worst = ratios[0]
            cells += [_cell(mean(ratios), bound.mean if bound else None)]
            cells += [_cell(worst.value, bound.worst if bound else None), _shape(worst)]
        grid.add_row(*cells)
    return grid


def _against(standing: Standing, goal: Target | None) -> list[tuple[tuple[Ratio, ...], Bound | None]]:
    return [(standing.floor, goal.floor if goal else None), (standing.other, goal.other if goal else None)]


def _cell(value: float, most: float | None) -> str:
    """`1.05 (1.10)`, and `1.18 (1.10) missed` where it is more than its target."""
    if most is None:
        return f"{value:.2f}"
    return f"{value:.2f} ({most:.2f})" + " missed" * (value > most)


def _shape(ratio: Ratio) -> str:
    return "x".join(str(length) for _, length in Workload.parse(ratio.workload).sizes)


def _verdict(found: Sequence[Standing]) -> str:
    met = [value <= most for standing in found for value, most in _judged(standing)]
    return f"{sum(met)} of {units.several(len(met), 'target')} met"


def _judged(standing: Standing) -> list[tuple[float, float]]:
    """Each figure that has a target, and the target."""
    return [
        pair
        for ratios, bound in _against(standing, standing.target)
        if bound is not None
        for pair in ((mean(ratios), bound.mean), (ratios[0].value, bound.worst))
    ]


def _missed(found: Sequence[Standing]) -> Grid | None:
    """The worst shapes of every target that is missed, and who ran them."""
    grid = Grid(title="Worst where a target is missed", title_justify="left", box=box.MARKDOWN)
    for column in ("op", "bytes in", "against", "shape", "ratio", "at best", "kernel", "config"):
        grid.add_column(column, justify="right" if column in ("ratio", "at best") else "left", overflow="fold")
    for standing in found:
        for against, (ratios, bound) in zip(("floor", "best other"), _against(standing, standing.target)):
            if bound is not None and (mean(ratios) > bound.mean or ratios[0].value > bound.worst):
                for ratio in ratios[:_NAMED]:
                    figures = ("-" if value is None else f"{value:.2f}" for value in (ratio.value, ratio.at_best))
                    who = (ratio.kernel, _plain(ratio.config))
                    grid.add_row(standing.label, standing.place, against, _shape(ratio), *figures, *who)
    return grid if grid.row_count else None


def _plain(text: str) -> str:
    """A text that is no markup."""
    return text.replace("[", "\\[")
