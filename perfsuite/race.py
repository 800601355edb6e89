"""Finalists in interleaved rounds until a verdict: a generator that asks for rounds and holds no device."""

from __future__ import annotations

import math
import statistics
from collections.abc import Generator, Sequence

from perfsuite.stats import Verdict, compare

# Rounds asked for at a time, and the fewest before a verdict counts.
BLOCK, FEWEST = 6, 12

Samples = list[list[float]]


def race(
    entrants: int, rounds: int, margin: float = 0.01, error: float = 0.01
) -> Generator[list[int], Samples, Samples]:
    """Yields the entrants still in the race, is sent one list of BLOCK samples for each, returns all samples.

    An entrant that is SLOWER than the leader drops out, with `error` shared among the entrants; it keeps its samples.
    The race ends when all that are left tie with the leader, or after `rounds`.
    """
    samples: Samples = [[] for _ in range(entrants)]
    active = list(range(entrants))
    each = error / max(1, entrants - 1)
    while len(samples[active[0]]) < rounds:
        block = yield list(active)
        for entrant, new in zip(active, block):
            samples[entrant] += new
        if len(samples[active[0]]) < FEWEST:
            continue
        leader = min(active, key=lambda e: statistics.median(samples[e]))
        verdicts = {e: compare(samples[e], samples[leader], margin, each) for e in active if e != leader}
        active = [e for e in active if verdicts.get(e) != Verdict.SLOWER]
        if all(verdicts.get(e, Verdict.TIE) == Verdict.TIE for e in active):
            break
    return samples


def verdict(times: Sequence[float], against: Sequence[float], margin: float = 0.01, error: float = 0.01) -> Verdict:
    """Verdict on the rounds that both took part in; UNDECIDED when those are too few."""
    both = min(len(times), len(against))
    return compare(times[:both], against[:both], margin, error) if both >= FEWEST else Verdict.UNDECIDED


def close(times: Sequence[float], against: Sequence[float], margin: float = 0.01) -> bool:
    """Whether the medians lie within the margin, as a tie that a short race could not prove does."""
    return abs(math.log(statistics.median(times) / statistics.median(against))) <= math.log1p(margin)
