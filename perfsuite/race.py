"""Finalists in interleaved rounds until a verdict: a generator that asks for rounds and holds no device."""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Sequence

from perfsuite.stats import BLOCK, Contrast, Verdict, moderated, quickest, quiet

# Who is surely no more than this slower than any other may as well be taken. Replayed on 27 recorded spaces, races to
# 2 % picked what was over 2 % slower in 9 of 645, these in 5, with 1.7 times the samples.
_INDIFFERENT = 0.01
# A judged entrant that is surely within this of the leader is near enough.
_NEAR = 0.02
# The fewest rounds before a verdict counts, a block from each of three processes; and the blocks from every process
# before anything is decided by choice. Noise lasts: the rounds of 0.1 s may all be those of one neighbour's burst.
FEWEST, _TURNS = 3 * BLOCK, 2
# Of so many successive rounds the quickest counts. Replayed from recorded rounds, races with two were wrong as rarely
# as those with four, and a kernel of 0.1 s has only 30 rounds.
_OF = 2
# The next test comes after so many times the rounds of the last: thousands of rounds, judged after each block, would
# take longer to judge than to run.
_LATER = 1.1
# Who needs this much more time in every sample of two blocks than the other in its quickest of all needs no test. One
# block comes from one process, and there equals were seen that far apart.
_FAR, _FAR_ROUNDS = 1.25, 2 * BLOCK
# Who is less likely than this to be faster than the leader leaves.
_HOPE = 0.01
# The race has a winner when it is less likely than this that another is faster by more than _INDIFFERENT.
_DOUBT = 0.005

_MARGIN = 0.01

Samples = list[list[float]]
Race = Generator[list[int], tuple[Samples, bool], Samples]


def race(entrants: int, rounds: int, judged: Collection[int] = (), error: float = 0.01, processes: int = 1) -> Race:
    """Yields the entrants still in the race, is sent BLOCK samples of each and whether time is up, returns all samples.

    The blocks come from `processes` processes in turn. The race ends when it is less likely than _DOUBT that the leader
    is more than _INDIFFERENT slower than any other, and each of the `judged` is known, with `error`, to be SLOWER or
    _NEAR, or cannot be told from the leader in `rounds`; or when time is up and every entrant has FEWEST samples. Who
    is far behind in two blocks drops out and keeps its samples; so does a judged entrant that is SLOWER, and any other
    that has hardly a chance to be faster than the leader.
    """
    samples: Samples = [[] for _ in range(entrants)]
    active = list(range(entrants))
    look: float = max(FEWEST, _TURNS * BLOCK * processes)
    while len(samples[active[0]]) < rounds:
        block, late = yield list(active)
        for entrant, new in zip(active, block):
            samples[entrant] += new
        leader = min(active, key=lambda e: level(samples[e]))
        active = [e for e in active if e == leader or not _far(samples[e], samples[leader])]
        if len(samples[leader]) < look and len(active) > 1 and not (late and len(samples[leader]) >= FEWEST):
            continue
        if late:
            break
        look = _LATER * len(samples[leader])
        others = [e for e in active if e != leader]
        said = {e: contrast(samples[e], samples[leader], processes) for e in others}
        known = dict(zip(others, moderated(list(said.values()))))
        left = {e for e in others if (_slower(said[e], error) if e in judged else _hopeless(known[e]))}
        active = [e for e in active if e not in left]
        doubt = math.fsum(known[e].chance(_INDIFFERENT) for e in others if e not in left)
        if doubt < _DOUBT and not any(_open(said[e], error, rounds) for e in others if e in judged and e not in left):
            break
    return samples


def parade(entrants: int, rounds: int) -> Race:
    """As `race`, but every entrant takes part in all `rounds`."""
    samples: Samples = [[] for _ in range(entrants)]
    while len(samples[0]) < rounds:
        block, _ = yield list(range(entrants))
        for entrant, new in zip(samples, block):
            entrant += new
    return samples


def verdict(
    times: Sequence[float], against: Sequence[float], margin: float = _MARGIN, error: float = 0.01, processes: int = 1
) -> Verdict:
    """Verdict on the rounds that both took part in, in blocks from `processes` processes in turn."""
    both = min(len(times), len(against))
    if _far(times[:both], against[:both]):
        return Verdict.SLOWER
    if _far(against[:both], times[:both]):
        return Verdict.FASTER
    return contrast(times, against, processes).verdict(margin, error)


def contrast(times: Sequence[float], against: Sequence[float], processes: int = 1) -> Contrast:
    """Of the rounds that both took part in, in blocks from `processes` processes in turn."""
    both = min(len(times), len(against))
    ours, theirs = quickest(times[:both], _OF), quickest(against[:both], _OF)
    return Contrast.of(ours, theirs, [at * _OF // BLOCK % processes for at in range(len(ours))])


def level(times: Sequence[float]) -> float:
    """Seconds; what contrasts compare."""
    return quiet(times, _OF)


def close(times: Sequence[float], against: Sequence[float], margin: float = _MARGIN) -> bool:
    """Whether the two lie within the margin, as a tie that a short race could not prove does."""
    return abs(math.log(level(times) / level(against))) <= math.log1p(margin)


def _slower(other: Contrast, error: float) -> bool:
    return other.verdict(_MARGIN, error) is Verdict.SLOWER


def _hopeless(other: Contrast) -> bool:
    return other.mean > math.log1p(_MARGIN) and other.chance() < _HOPE


def _open(other: Contrast, error: float, rounds: int) -> bool:
    """Whether it is not known which of the two to take, and more rounds may tell."""
    return not other.close(_NEAR, error) and other.may_be_decided(_NEAR, error, rounds // _OF)


def _far(times: Sequence[float], against: Sequence[float]) -> bool:
    return len(times) >= _FAR_ROUNDS and min(times) > _FAR * max(quickest(against, _OF))
