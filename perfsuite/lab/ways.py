"""Compares ways to decide among the default search's finalists: racing against fixed repeats."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from perfsuite import search
from perfsuite.lab.deciding import REPEATS, Decision, finalists_of, is_false, raced, repeated
from perfsuite.lab.replay import Replay, Tape, player
from perfsuite.lab.table import LabTable
from perfsuite.leaderboard import Way

# Decisions replayed after each search, to tell a share of false winners of 1 % from one of 2 %.
_DRAWS = 3
RACING = "racing"
# Whether the repeats of a config come from all processes in turn, as in a race.
FIXED = {"fixed repeats, one process": False, "fixed repeats, interleaved": True}

# (way, repeats of each finalist, 0 for a race) -> (samples, whether the winner was a false one) of every decision.
Ways = Mapping[tuple[str, int], Sequence[tuple[int, bool]]]


def compare(table: LabTable, repeats: int, budget: int) -> Ways:
    """Every way to decide, after searches of `budget` evaluations under `repeats` seeds; none if one config is left."""
    tape = Tape(table)
    play = player(search.STRATEGIES[search.DEFAULT])
    found: dict[tuple[str, int], list[tuple[int, bool]]] = {}
    for seed in range(repeats):
        replay = Replay(tape, seed)
        entrants = finalists_of(replay, play(replay, lambda count, best: count >= budget).evaluated)
        if len(entrants) < 2:
            continue
        for _ in range(_DRAWS):
            found.setdefault((RACING, 0), []).append(_judged(replay, raced(replay, entrants)))
            for name, in_turn in FIXED.items():
                for each in REPEATS:
                    decision = repeated(replay, entrants, each, in_turn=in_turn)
                    found.setdefault((name, each), []).append(_judged(replay, decision))
    return found


def _judged(replay: Replay, decision: Decision) -> tuple[int, bool]:
    return decision.samples, is_false(replay, decision.pick, decision.among)


def best_ways(tables: Iterable[Ways]) -> tuple[Way, ...]:
    """The race over all tables, and of each fixed way the one with the fewest repeats and no more false winners.

    Where none has as few, the one with the most repeats that were tried. Empty if there was nothing to decide.
    """
    found: dict[tuple[str, int], list[tuple[int, bool]]] = {}
    for table in tables:
        for key, judged in table.items():
            found.setdefault(key, []).extend(judged)
    if not found:
        return ()
    every = {key: _way(*key, judged) for key, judged in found.items()}
    race = every[RACING, 0]
    fixed = []
    for name in FIXED:
        ways = [every[name, each] for each in REPEATS]
        fixed.append(next((way for way in ways if way.false_winners <= race.false_winners), ways[-1]))
    return (race, *fixed)


def _way(name: str, repeats: int, judged: Sequence[tuple[int, bool]]) -> Way:
    samples = statistics.fmean(samples for samples, _ in judged)
    return Way(name, repeats, samples, statistics.fmean(wrong for _, wrong in judged))
