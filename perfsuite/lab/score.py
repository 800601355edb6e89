"""Scores searches on recorded tables: how soon they are near the optimum, and how often the winner is a false one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np

from perfsuite import detect, search
from perfsuite.lab import deciding, seeded
from perfsuite.lab.peers import PEERS
from perfsuite.lab.replay import Player, Replay, Tape, player
from perfsuite.lab.table import LabTable
from perfsuite.lab.targets import judge
from perfsuite.lab.ways import compare, every_way
from perfsuite.leaderboard import Leaderboard, Played, Standing

# A search may evaluate this many configs, or this share of the space where that is more, before its pick is judged.
BUDGET, SHARE = 40, 0.1
NEAR, NEAREST = 0.05, 0.01
OURS = (*search.STRATEGIES, *seeded.NAMES)
# Regret beyond this, and that of a config that fails, is drawn and averaged as this.
_MOST_REGRET = 10.0


@dataclass(frozen=True)
class Play:
    """One search on one table under one seed; evaluations to 5 % and 1 % of the optimum, seconds and regret likewise.

    `regrets` and `seconds` are those of the best after each evaluation; what is never reached costs the whole space.
    """

    table: int
    budget: int
    to_5: int
    to_1: int
    seconds_to_5: float
    configs: int
    false_winner: bool
    pick_regret: float
    regrets: tuple[float, ...]
    seconds: tuple[float, ...]

    def regret_after(self, evaluations: int) -> float:
        return self.regrets[min(evaluations, len(self.regrets)) - 1]

    def regret_at(self, seconds: float) -> float:
        """Of the best at that time; of the default before the first evaluation has ended."""
        return self.regrets[max(0, int(np.searchsorted(self.seconds, seconds, side="right")) - 1)]


def budget(configs: int) -> int:
    """Evaluations after which the default strategy is to be within 5 % of the optimum."""
    return min(configs, max(BUDGET, math.ceil(SHARE * configs)))


def play(replay: Replay, table: int, player: Player, *, races: bool) -> Play:
    """Play one search to its budget, and on until it is within 1 % of the optimum or has seen the lowest cost of all.

    Its pick after the budget is what a race among its finalists says; without `races`, the lowest cost it has seen.
    """
    configs, regret = len(replay.space), replay.regret
    allowed = budget(configs)
    lowest = int(replay.costs.argmin())
    trace = player(replay, lambda count, best: count >= allowed and (best == lowest or bool(regret[best] <= NEAREST)))
    incumbents = trace.incumbents(replay)
    regrets = np.minimum(regret[incumbents], _MOST_REGRET)
    seconds = np.cumsum(replay.wall[list(trace.evaluated)])
    to_5, to_1 = (_first(regrets <= near, configs) for near in (NEAR, NEAREST))
    evaluated = trace.evaluated[:allowed]
    entrants = deciding.finalists_of(replay, evaluated) if races else ()
    pick = deciding.raced(replay, entrants).pick if entrants else incumbents[len(evaluated) - 1]
    return Play(
        *(table, allowed, to_5, to_1),
        float(seconds[to_5 - 1]) if to_5 <= len(seconds) else float(replay.wall.sum()),
        configs,
        deciding.is_false(replay, pick, evaluated),
        min(float(regret[pick]), _MOST_REGRET),
        tuple(map(float, regrets)),
        tuple(map(float, seconds)),
    )


def _first(reached: np.typing.NDArray[np.bool_], otherwise: int) -> int:
    """The number of evaluations after which it is reached first."""
    return int(reached.argmax()) + 1 if reached.any() else otherwise


def searches(names: Sequence[str], *, peers: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The searches of those names, or all of ours and the installed peers; and the tuners that are not installed.

    ValueError for a name that is no search, or one of a tuner that is not installed.
    """
    installed = [name for name, peer in PEERS.items() if peer.installed]
    for name in names:
        if name in PEERS and name not in installed:
            raise ValueError(f"{name} needs {PEERS[name].module}: pip install 'perfsuite[lab]'")
        if name not in (*OURS, *PEERS):
            raise ValueError(f"--strategy {name!r} is none of {', '.join([*OURS, *PEERS])}")
    if names:
        return tuple(dict.fromkeys(names)), ()
    missing = {PEERS[name].tuner for name in PEERS if peers and name not in installed}
    return (*OURS, *(installed if peers else ())), tuple(sorted(missing))


@dataclass(frozen=True)
class Scored:
    """Progress: a search has been played on a table, the `at`-th `of` so many."""

    name: str
    at: int
    of: int


def score(
    tables: Sequence[LabTable], names: Sequence[str], repeats: int, missing: Sequence[str] = ()
) -> Iterator[Scored | Leaderboard]:
    """Plays every search on every table under `repeats` seeds; yields progress, and at last the leaderboard."""
    plays: dict[str, list[Play]] = {name: [] for name in names}
    with ProcessPoolExecutor(len(detect.allowed_cores())) as pool:
        playing = {
            pool.submit(_plays, name, number, table, _told(name, table, tables), repeats): name
            for number, table in enumerate(tables)
            for name in names
        }
        comparing = [pool.submit(compare, table, repeats, budget(len(table.visits))) for table in tables]
        for at, done in enumerate(as_completed(playing), start=1):
            plays[playing[done]] += done.result()
            yield Scored(playing[done], at, len(playing))
        cases = [done.result() for done in comparing]
    ways = every_way(cases)
    evaluations = _grid(max(len(table.visits) for table in tables))
    seconds = _time_grid([p for every in plays.values() for p in every])
    played = tuple(_played(table) for table in tables)
    few = {at for at, table in enumerate(played) if table.few}
    standings = sorted((_standing(name, every, few, evaluations, seconds) for name, every in plays.items()), key=_order)
    yield Leaderboard(
        default=search.DEFAULT,
        repeats=repeats,
        tables=played,
        standings=tuple(standings),
        ways=ways,
        targets=judge(standings, ways, search.DEFAULT, len(few)),
        missing=tuple(missing),
        evaluations=evaluations,
        seconds=seconds,
    )


def _told(name: str, table: LabTable, tables: Sequence[LabTable]) -> tuple[LabTable, ...]:
    """What the search is told of other tables."""
    return seeded.neighbours(table, tables) if name in seeded.NAMES else ()


def _plays(name: str, number: int, table: LabTable, told: Sequence[LabTable], repeats: int) -> list[Play]:
    tape, chosen = Tape(table), _player(name, told)
    return [play(Replay(tape, seed), number, chosen, races=name not in PEERS) for seed in range(repeats)]


def _player(name: str, told: Sequence[LabTable]) -> Player:
    if name in seeded.NAMES:
        return seeded.seeded(name, told, BUDGET)
    return PEERS[name].play if name in PEERS else player(search.STRATEGIES[name])


def _order(standing: Standing) -> tuple[float, float, str]:
    return standing.mean_to_5, standing.mean_to_1, standing.name


def _standing(
    name: str, plays: Sequence[Play], few: Collection[int], evaluations: Sequence[int], seconds: Sequence[float]
) -> Standing:
    tables = {p.table for p in plays}
    of_few = [p.to_5 for p in plays if p.table in few]
    medians = [statistics.median(p.to_5 / p.budget for p in plays if p.table == table) for table in tables]
    return Standing(
        name=name,
        tuner=PEERS[name].tuner if name in PEERS else "",
        to_5=statistics.median(p.to_5 for p in plays),
        mean_to_5=statistics.geometric_mean([p.to_5 for p in plays]),
        few_to_5=statistics.geometric_mean(of_few) if of_few else None,
        to_1=statistics.median(p.to_1 for p in plays),
        mean_to_1=statistics.geometric_mean([p.to_1 for p in plays]),
        seconds_to_5=statistics.median(p.seconds_to_5 for p in plays),
        share_to_5=statistics.median(p.to_5 / p.budget for p in plays),
        regret=_mean([p.regret_after(BUDGET) for p in plays]),
        false_winners=statistics.fmean(p.false_winner for p in plays),
        pick_regret=_mean([p.pick_regret for p in plays]),
        tables_within=statistics.fmean(median <= 1.0 for median in medians),
        by_evaluations=tuple(_mean([p.regret_after(n) for p in plays]) for n in evaluations),
        by_seconds=tuple(_mean([p.regret_at(s) for p in plays]) for s in seconds),
    )


def _mean(regrets: Sequence[float]) -> float:
    """That of the geometric mean of the slowdowns."""
    return math.expm1(statistics.fmean(map(math.log1p, regrets)))


def _grid(most: int) -> tuple[int, ...]:
    """Every number of evaluations to 20, then in steps of about 5 %."""
    return tuple(sorted({*range(1, min(most, 20) + 1), *(int(n) for n in np.geomspace(1, most, 120))}))


def _time_grid(plays: Sequence[Play]) -> tuple[float, ...]:
    """From the end of the first evaluation to that of the last, in steps of a few percent."""
    first, last = min(p.seconds[0] for p in plays), max(p.seconds[-1] for p in plays)
    return tuple(float(f"{s:.4g}") for s in np.geomspace(first, last, 120))


def _played(table: LabTable) -> Played:
    near = int((Replay(Tape(table), 0).regret <= NEAR).sum())
    return Played(str(table.subject), len(table.visits), near, table.passes, table.subject.machine.slug)
