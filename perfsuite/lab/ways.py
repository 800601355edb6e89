"""Compares ways to decide among the default search's finalists: racing against fixed repeats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from perfsuite import search
from perfsuite.lab.deciding import REPEATS, ROUNDS, Decision, finalists_of, is_false, raced, repeated
from perfsuite.lab.replay import Replay, Tape, player
from perfsuite.lab.table import LabTable
from perfsuite.leaderboard import RACING, Way

# Decisions replayed after each search, to tell a share of false winners of 1 % from one of 2 %.
_DRAWS = 3
# Whether the repeats of a config come from all processes in turn, as in a race.
FIXED = {"fixed repeats, one process": False, "fixed repeats, interleaved": True}

# (way, the most samples of each finalist) -> (samples, whether the winner was a false one) of every decision.
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
            for name, most, decision in _decisions(replay, entrants):
                judged = decision.samples, is_false(replay, decision.pick, decision.among)
                found.setdefault((name, most), []).append(judged)
    return found


def _decisions(replay: Replay, entrants: Sequence[int]) -> Iterator[tuple[str, int, Decision]]:
    for rounds in ROUNDS:
        yield RACING, rounds, raced(replay, entrants, rounds)
    for name, in_turn in FIXED.items():
        for each in REPEATS:
            yield name, each, repeated(replay, entrants, each, in_turn=in_turn)


def every_way(tables: Iterable[Ways]) -> tuple[Way, ...]:
    """All ways over all tables, each with more and more samples; empty if there was nothing to decide."""
    found: dict[tuple[str, int], list[tuple[int, bool]]] = {}
    for table in tables:
        for key, judged in table.items():
            found.setdefault(key, []).extend(judged)
    return tuple(
        Way(name, most, fmean(n for n, _ in judged), fmean(wrong for _, wrong in judged), len(judged))
        for (name, most), judged in found.items()
    )
