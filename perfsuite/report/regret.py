"""Policy regret: what a winner chosen under one policy costs where calls are like another one."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perfsuite import units
from perfsuite.kernel import Config
from perfsuite.op import Workload
from perfsuite.policy import Policy
from perfsuite.report.evidence import Evidence
from perfsuite.report.section import Cell, Grid, Section, cells
from perfsuite.report.winners import geometric_mean
from perfsuite.table import Entry
from perfsuite.trial import Trial

MOST = 12
PAIRS = (
    ("Chosen under", "word"),
    ("Called under", "word"),
    ("Workloads", "number"),
    ("Same winner", "number"),
    ("Geometric mean", "number"),
    ("Worst", "number"),
)
WORST = (
    ("Workload", "code"),
    ("Chosen under", "word"),
    ("Its winner", "code"),
    ("Called under", "word"),
    ("Winner there", "code"),
    ("Costs", "number"),
)
_Key = tuple[Workload, Policy, str, Config]


@dataclass(frozen=True)
class Regret:
    """`chosen` and `right` won on one workload under different policies; `ratio` is the time of `chosen` over that of
    `right` under the policy of `right`. `paired`: both from the race that `right` won."""

    chosen: Entry
    right: Entry
    ratio: float
    paired: bool

    @property
    def same(self) -> bool:
        return (self.chosen.kernel, self.chosen.config) == (self.right.kernel, self.right.config)


def regrets(evidence: Evidence) -> tuple[tuple[Regret, ...], int]:
    """Of every workload with winners under several policies, the largest ratio first; and how many winners were never
    timed under the other policy."""
    searched: dict[_Key, float] = {}
    raced: dict[str, Trial] = {}
    for trial in evidence.fresh:
        if trial.measurement is not None and trial.stage == "race":
            raced[trial.id] = trial
        elif trial.measurement is not None:
            key = (trial.workload, trial.policy, trial.kernel, trial.config)
            searched[key] = min(trial.seconds, searched.get(key, float("inf")))
    entries: dict[Workload, list[Entry]] = defaultdict(list)
    for entry in evidence.table.entries:
        if not evidence.is_stale(entry.kernel, entry.digest) and evidence.family(entry.workload) != "probes":
            entries[entry.workload].append(entry)
    pairs = [pair for known in entries.values() for pair in itertools.permutations(known, 2)]
    found = [_regret(chosen, right, searched, raced) for chosen, right in pairs]
    known = sorted((r for r in found if r is not None), key=lambda r: (-r.ratio, str(r.right.workload)))
    return tuple(known), len(found) - len(known)


def _regret(chosen: Entry, right: Entry, searched: Mapping[_Key, float], raced: Mapping[str, Trial]) -> Regret | None:
    """Both times from the race where it has them, else both from the search, which ran at another time."""
    place = (right.workload, right.policy)
    mine, other = (*place, chosen.kernel, chosen.config), (*place, right.kernel, right.config)
    race = {(*place, t.kernel, t.config): t.seconds for t in map(raced.get, right.trials) if t is not None}
    for times in (race, searched):
        if mine in times and other in times:
            return Regret(chosen, right, times[mine] / times[other], times is race)
    return None


def section(evidence: Evidence) -> Section | None:
    """None where no workload has winners under two policies whose times are known."""
    found, unknown = regrets(evidence)
    if not found:
        return None
    worst, names = found[0], _names(found)
    workloads = len({regret.right.workload for regret in found})
    mean, most = units.ratio(geometric_mean([r.ratio for r in found])), units.ratio(worst.ratio)
    words = [
        f"{units.several(workloads, 'workload')} won under more than one policy. To choose under one and call under "
        f"another costs {mean} the time of the right choice in the geometric mean, at worst {most} "
        f"(`{worst.right.workload}`, chosen {names[worst.chosen.policy]}, called {names[worst.right.policy]}).",
        "A ratio below 1 is noise, or a tie in which the simpler kernel won. One marked ~ compares times of the "
        "search, not of a race.",
    ]
    if unknown:
        words.append(
            f"Not counted: {units.several(unknown, 'winner')} that the search under the other policy left out."
        )
    grids = [Grid(PAIRS, tuple(_pair_rows(found, names)))]
    shown = [regret for regret in found if not regret.same][:MOST]
    if shown:
        grids.append(Grid(WORST, tuple(_row(regret, names) for regret in shown), title="The worst cases"))
    return Section("regret", "Chosen under the wrong policy", tuple(words), grids=tuple(grids))


def _pair_rows(found: Sequence[Regret], names: Mapping[Policy, str]) -> list[tuple[Cell, ...]]:
    groups: dict[tuple[str, str], list[Regret]] = defaultdict(list)
    for regret in found:
        groups[names[regret.chosen.policy], names[regret.right.policy]].append(regret)
    return [
        cells(
            chosen,
            called,
            f"{len(group):,}",
            f"{sum(r.same for r in group):,}",
            units.ratio(geometric_mean([r.ratio for r in group])),
            _ratio(max(group, key=lambda r: r.ratio)),
        )
        for (chosen, called), group in sorted(groups.items())
    ]


def _row(regret: Regret, names: Mapping[Policy, str]) -> tuple[Cell, ...]:
    chosen, right = regret.chosen, regret.right
    return cells(
        str(right.workload),
        names[chosen.policy],
        _kernel(chosen),
        names[right.policy],
        _kernel(right),
        _ratio(regret),
    )


def _kernel(entry: Entry) -> Cell:
    return Cell(entry.kernel.rpartition("/")[2], str(entry.config) if entry.config.values else "")


def _ratio(regret: Regret) -> str:
    return f"{'' if regret.paired else '~'}{units.ratio(regret.ratio)}"


def _names(found: Sequence[Regret]) -> dict[Policy, str]:
    """Each policy by what tells it from the others: `cold` beside `warm`."""
    policies = list(dict.fromkeys(r.right.policy for r in found))
    parts = {p: (p.cache, p.output, units.several(p.threads, "thread"), p.launch, p.device) for p in policies}
    differing = [at for at in range(5) if len({words[at] for words in parts.values()}) > 1]
    return {policy: ", ".join(words[at] for at in differing) for policy, words in parts.items()}
