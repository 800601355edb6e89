"""Fresh runs of a whole tuning: do they pick the same, within what can be told apart?"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from perfsuite import detect, registry, units
from perfsuite.kernel import Config
from perfsuite.op import Workload
from perfsuite.plan import EFFORTS, Plan
from perfsuite.policy import Policy
from perfsuite.race import close, verdict
from perfsuite.racing import Racers
from perfsuite.registry import Registry
from perfsuite.results import Results
from perfsuite.stats import Verdict
from perfsuite.table import Entry
from perfsuite.tune import tune
from perfsuite.winners import decide
from perfsuite.worker import Candidate, alone

# Picks within this of the best one count as one tie set.
MARGIN = 0.02


@dataclass(frozen=True)
class Pick:
    """A winner of some of the runs, raced against the other picks of its workload.

    `ratio` is its median over that of the fastest pick, `tied` whether the race tells them apart by more than MARGIN.
    """

    workload: str
    kernel: str
    config: str
    runs: int
    seconds: float
    ratio: float
    tied: bool


def collected(plan: Plan, runs: int, console: Console, *, quiet: bool = False) -> list[Entry]:
    """The winners of so many runs, with a line on each run."""
    entries: list[Entry] = []
    for run in range(1, runs + 1):
        picks = _fresh(plan)
        entries += picks
        if not quiet:
            said = "; ".join(f"{pick.workload} {pick.kernel} {pick.config}" for pick in picks)
            console.print(f"run {run} of {runs}: {said}", highlight=False, markup=False, soft_wrap=True)
    return entries


def _fresh(plan: Plan) -> tuple[Entry, ...]:
    """The winners of one run that begins with an empty database."""
    wanted = {job.workload for job in plan.jobs}
    with tempfile.TemporaryDirectory() as folder, Results.open(f"sqlite:///{Path(folder) / 'fresh.db'}") as results:
        for _ in tune(plan, results):
            pass
        trials = results.trials(plan.machine, stage="race")
        table = decide(plan.machine, trials, plan.registry.digests, plan.registry.defaults)
    return tuple(entry for entry in table.entries if entry.workload in wanted)


def plan_of(patterns: Sequence[str], effort: str, policy: Policy) -> Plan:
    """The plan of a fresh run; ceilings are left out, since each run would measure them anew."""
    known = registry.discover()
    return Plan(detect.machine(), known, known.select(patterns), policy, EFFORTS[effort], ceilings=False)


def raced(entries: Sequence[Entry], known: Registry, policy: Policy, rounds: int) -> Iterator[Pick]:
    """All picks of each workload in one race of so many rounds, the fastest first."""
    picked: dict[Workload, Counter[tuple[str, Config]]] = {}
    for entry in entries:
        picked.setdefault(entry.workload, Counter())[entry.kernel, entry.config] += 1
    racers = Racers(detect.divided_cores(policy.threads)[0], policy.threads, EFFORTS["default"].processes)
    try:
        for workload, counts in picked.items():
            candidates = [Candidate(workload, known.kernels[kernel], config) for kernel, config in counts]
            with alone():
                measured = racers.rounds(candidates, policy, rounds)
            best = min(measured, key=lambda m: m.median)
            for (kernel, config), one in sorted(zip(counts, measured), key=lambda pair: pair[1].median):
                said = verdict(one.samples, best.samples, MARGIN, processes=one.processes)
                near = said is Verdict.UNDECIDED and close(one.samples, best.samples, MARGIN)
                tied = one is best or said is Verdict.TIE or near
                runs = counts[kernel, config]
                ratio = one.median / best.median
                yield Pick(str(workload), kernel, str(config), runs, one.median, ratio, tied)
    finally:
        racers.close()


def summary(picks: Sequence[Pick]) -> dict[str, Any]:
    by_workload: dict[str, list[Pick]] = {}
    for pick in picks:
        by_workload.setdefault(pick.workload, []).append(pick)
    return {
        "margin": MARGIN,
        "one_tie_set": all(pick.tied for pick in picks),
        "worst": max((pick.ratio for pick in picks), default=1.0),
        "workloads": {workload: [asdict(pick) for pick in mine] for workload, mine in by_workload.items()},
    }


def show(found: Mapping[str, Any], console: Console) -> None:
    for workload, picks in found["workloads"].items():
        grid = Grid(title=workload.replace("[", "\\["), title_justify="left", box=None, padding=(0, 2, 0, 0))
        for column in ("pick", "config", "runs", "time", "x best", "tie set"):
            grid.add_column(column, justify="left" if column in ("pick", "config") else "right", overflow="fold")
        for p in picks:
            words = (p["kernel"], p["config"], str(p["runs"]), units.seconds(p["seconds"]), f"{p['ratio']:.3f}")
            grid.add_row(*words, "yes" if p["tied"] else "no")
        console.print(grid, "")
    said = "one tie set" if found["one_tie_set"] else "not one tie set"
    console.print(f"{said} at {MARGIN:.0%}; the slowest pick takes {found['worst']:.3f} x the fastest", highlight=False)
