"""Finalists in interleaved rounds until a verdict: a generator that asks for rounds and holds no device."""

from __future__ import annotations

import math
import statistics
from collections.abc import Generator, Sequence

from perfsuite.stats import Verdict, compare

# Rounds asked for at a time, and the fewest before a verdict counts.
BLOCK, FEWEST = 4, 8
# An entrant whose every sample of the first block is this much above all of the leader's needs no test.
_FAR = 1.25

Samples = list[list[float]]


def race(
    entrants: int, rounds: int, margin: float = 0.01, error: float = 0.01
) -> Generator[list[int], tuple[Samples, bool], Samples]:
    """Yields the entrants still in the race, is sent BLOCK samples of each and whether time is up, returns all samples.

    An entrant that is SLOWER than the leader drops out, with `error` shared among the entrants; it keeps its samples.
    So does one that is far behind in the first block. The race ends when all that are left tie with the leader, after
    `rounds`, or when time is up
    and every entrant has FEWEST samples.
    """
    samples: Samples = [[] for _ in range(entrants)]
    active = list(range(entrants))
    each = error / max(1, entrants - 1)
    while len(samples[active[0]]) < rounds:
        block, late = yield list(active)
        for entrant, new in zip(active, block):
            samples[entrant] += new
        leader = min(active, key=lambda e: statistics.median(samples[e]))
        active = [e for e in active if e == leader or min(samples[e]) <= _FAR * max(samples[leader])]
        if len(samples[leader]) < FEWEST and len(active) > 1:
            continue
        if late:
            break
        verdicts = {e: compare(samples[e], samples[leader], margin, each) for e in active if e != leader}
        active = [e for e in active if verdicts.get(e) != Verdict.SLOWER]
        if all(verdicts.get(e, Verdict.TIE) == Verdict.TIE for e in active):
            break
    return samples


def verdict(times: Sequence[float], against: Sequence[float], margin: float = 0.01, error: float = 0.01) -> Verdict:
    """Verdict on the rounds that both took part in."""
    both = min(len(times), len(against))
    return compare(times[:both], against[:both], margin, error)


def close(times: Sequence[float], against: Sequence[float], margin: float = 0.01) -> bool:
    """Whether the medians lie within the margin, as a tie that a short race could not prove does."""
    return abs(math.log(statistics.median(times) / statistics.median(against))) <= math.log1p(margin)
