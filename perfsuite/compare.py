"""What `perfsuite compare` does: every kernel's best config side by side, with a plain copy of the same bytes."""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from perfsuite import detect, places, registry, units
from perfsuite.machine import Machine
from perfsuite.op import ITEMSIZE, Workload
from perfsuite.plan import elsewhere, refused, require_device
from perfsuite.policy import Policy
from perfsuite.racing import Racers
from perfsuite.registry import Registry
from perfsuite.results import Results
from perfsuite.trial import Failure, Trial
from perfsuite.worker import Candidate, WorkerDied, alone

COPY = "copy"
_PLAIN, PEERS = "plain copy", "peers"


@dataclass(frozen=True)
class Row:
    """One kernel on one workload: median seconds, and the median ratio to copy and to eager over the rounds."""

    workload: str
    kernel: str
    config: str
    seconds: float
    against_copy: float | None
    against_eager: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    patterns: Sequence[str],
    policy: Policy,
    rounds: int,
    db: str | None,
    *,
    peers: bool = False,
    budget: float = math.inf,
) -> list[Row]:
    """Race, per workload, the best known config of every kernel (its default where none is known) and a copy.

    With `peers`, the other libraries of the folder `peers` that are installed take part. After `budget` seconds no race
    begins, and the workloads that are left are named.
    """
    deadline = time.monotonic() + budget
    if peers:
        # In the environment, because the worker finds its kernels itself.
        os.environ["PERFSUITE_KERNELS"] = os.pathsep.join(
            filter(None, [os.environ.get("PERFSUITE_KERNELS"), str(Path(__file__).with_name(PEERS))])
        )
    machine, known = detect.machine(), registry.discover()
    require_device(policy, machine)
    with Results.open(places.database_url(db)) as results:
        trials = results.trials(machine, policy=policy, stage="search")
    racers = Racers(detect.allowed_cores()[-policy.threads :], policy.threads)
    rows: list[Row] = []
    try:
        for job in known.select(patterns):
            if time.monotonic() > deadline:
                print(f"perfsuite: {job.workload} is not compared: the budget is spent", file=sys.stderr)
                continue
            candidates = list(_candidates(known, machine, job.workload, policy, trials))
            candidates += _copies(known, machine, job.workload)
            rows += _raced(racers, candidates, policy, rounds)
    finally:
        racers.close()
    return rows


def _candidates(
    known: Registry, machine: Machine, workload: Workload, policy: Policy, trials: Sequence[Trial]
) -> Iterator[Candidate]:
    for kernel in known.kernels_for(workload.op):
        if (elsewhere(kernel, policy) or refused(kernel, workload, machine)) is None:
            mine = [t for t in trials if t.workload == workload and t.kernel == str(kernel) and t.measurement]
            fresh = [t for t in mine if t.digest == kernel.digest]
            best = min(fresh, key=lambda t: t.seconds).config if fresh else kernel.space(workload, machine).configs[0]
            yield Candidate(workload, kernel, best)


def _copies(known: Registry, machine: Machine, workload: Workload) -> list[Candidate]:
    """`y.copy_(x)` of as many bytes as the workload must move, half read and half written."""
    if COPY not in known.ops:
        return []
    elements = known.ops[workload.op].least_bytes(workload) // 2 // ITEMSIZE["f32"]
    plain = Workload(COPY, (("elements", elements),))
    eager = next(k for k in known.kernels_for(COPY) if k.default)
    return [Candidate(plain, eager, eager.space(plain, machine).configs[0])]


def _raced(racers: Racers, candidates: Sequence[Candidate], policy: Policy, rounds: int) -> Iterator[Row]:
    """The rows of one race, fastest first. A candidate that cannot be built or run is left out with a word."""
    able = []
    for candidate in candidates:
        failed = racers.workers[0].build(candidate, policy)
        if failed is None:
            able.append(candidate)
        elif isinstance(failed.outcome, Failure):
            print(f"perfsuite: {candidate} is left out: {failed.outcome.reason}", file=sys.stderr)
    if not able:
        return
    try:
        with alone():
            samples = [m.samples for m in racers.rounds(able, policy, rounds)]
    except WorkerDied as died:
        raise ValueError(f"{candidates[0].workload}: the race ended early: {died}") from died
    copy = next((s for c, s in zip(able, samples) if c.workload.op == COPY), None)
    eager = next((s for c, s in zip(able, samples) if c.kernel.default and c.workload.op != COPY), None)
    workload = str(candidates[0].workload)
    for candidate, times in sorted(zip(able, samples), key=lambda pair: statistics.median(pair[1])):
        name = _PLAIN if candidate.workload.op == COPY else str(candidate.kernel)
        ratios = _ratio(times, copy), _ratio(times, eager)
        yield Row(workload, name, str(candidate.config), statistics.median(times), *ratios)


def _ratio(times: Sequence[float], against: Sequence[float] | None) -> float | None:
    """Median over the rounds of times / against."""
    return None if against is None else statistics.median(a / b for a, b in zip(times, against))


@dataclass(frozen=True)
class Standing:
    """An op on one dtype over its workloads: perfsuite's fastest kernel against a plain copy and against all others.

    The others are eager, inductor and the peers. Both are geometric means and worst cases of time / time.
    """

    op: str
    dtype: str
    workloads: int
    against_copy: float
    worst_copy: float
    against_others: float
    worst_others: float


def standings(rows: Sequence[Row]) -> list[Standing]:
    """Of each op and dtype that has kernels of perfsuite's own, others and a copy beside them."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for name, several in groupby(rows, key=lambda row: row.workload):
        workload, raced = Workload.parse(name), [row for row in several if row.kernel != _PLAIN]
        ours = min((row for row in raced if not _other(row)), key=_seconds, default=None)
        other = min(filter(_other, raced), key=_seconds, default=None)
        if ours is not None and other is not None and ours.against_copy is not None:
            found[workload.op, workload.dtype].append((ours.against_copy, ours.seconds / other.seconds))
    return [_standing(op, dtype, pairs) for (op, dtype), pairs in found.items()]


def _standing(op: str, dtype: str, pairs: Sequence[tuple[float, float]]) -> Standing:
    copies, others = zip(*pairs)
    return Standing(op, dtype, len(pairs), geometric_mean(copies), max(copies), geometric_mean(others), max(others))


def _seconds(row: Row) -> float:
    return row.seconds


def _other(row: Row) -> bool:
    """Whether the row's kernel is none of perfsuite's own: eager, inductor or a peer."""
    family, _, name = row.kernel.partition("/")
    return family == PEERS or name.startswith(("eager", "inductor"))


def show(rows: Sequence[Row], console: Console) -> None:
    for workload in dict.fromkeys(row.workload for row in rows):
        grid = Grid(title=workload.replace("[", "\\["), title_justify="left", box=None, padding=(0, 2, 0, 0))
        for column in ("kernel", "time", "x copy", "x eager", "config"):
            grid.add_column(column, justify="right" if column.startswith(("time", "x ")) else "left", overflow="fold")
        for row in (r for r in rows if r.workload == workload):
            ratios = ("-" if r is None else f"{r:.2f}" for r in (row.against_copy, row.against_eager))
            grid.add_row(row.kernel, units.seconds(row.seconds), *ratios, row.config)
        console.print(grid, "")
    if found := standings(rows):
        console.print(_summary(found))


def _summary(standings: Sequence[Standing]) -> Grid:
    grid = Grid(title="perfsuite's fastest against the rest", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("op", "shapes", "x copy", "at worst", "x best other", "at worst"):
        grid.add_column(column, justify="left" if column == "op" else "right")
    for s in standings:
        means = (s.against_copy, s.worst_copy, s.against_others, s.worst_others)
        grid.add_row(f"{s.op} {s.dtype}", str(s.workloads), *(f"{mean:.2f}" for mean in means))
    return grid
