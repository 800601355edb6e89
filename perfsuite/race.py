"""Finalists in interleaved rounds until a verdict: a generator that asks for rounds and holds no device."""

from __future__ import annotations

import math
import statistics
from collections.abc import Generator, Sequence

from perfsuite.stats import Contrast, Verdict, winsorised

# Who is certainly within this of the leader may as well be taken.
INDIFFERENT = 0.02
# Rounds asked for at a time, and the fewest before a verdict counts: a block from each of three processes.
BLOCK, FEWEST = 4, 12
# The next test comes after so many times the rounds of the last: thousands of rounds, judged after each block, would
# take longer to judge than to run.
_LATER = 1.1
# Who needs this much more time in every sample of two blocks than the other in any of its own needs no test. One block
# comes from one process, and there equals were seen that far apart.
_FAR, _FAR_ROUNDS = 1.25, 2 * BLOCK

_MARGIN = 0.01

Samples = list[list[float]]
Race = Generator[list[int], tuple[Samples, bool], Samples]


def race(entrants: int, rounds: int, error: float = 0.01, processes: int = 1) -> Race:
    """Yields the entrants still in the race, is sent BLOCK samples of each and whether time is up, returns all samples.

    The blocks come from `processes` processes in turn. An entrant that is SLOWER than the leader drops out, with
    `error` shared among the entrants; it keeps its samples. So does one that is far behind in two blocks. The race
    ends when all that are left lie within INDIFFERENT of the leader, or cannot be told from it in `rounds`; or when
    time is up and every entrant has FEWEST samples.
    """
    samples: Samples = [[] for _ in range(entrants)]
    active = list(range(entrants))
    each = error / max(1, entrants - 1)
    look: float = FEWEST
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
        others = {e: contrast(samples[e], samples[leader], processes) for e in active if e != leader}
        active = [e for e in active if e == leader or others[e].verdict(_MARGIN, each) is not Verdict.SLOWER]
        if not any(_open(others[e], each, rounds) for e in active if e != leader):
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
    return Contrast.of(times[:both], against[:both], [at // BLOCK % processes for at in range(both)])


def _open(other: Contrast, error: float, rounds: int) -> bool:
    """Whether it matters which of the two is taken, and more rounds may tell."""
    return not other.close(INDIFFERENT, error) and other.may_be_decided(INDIFFERENT, error, rounds)


def _far(times: Sequence[float], against: Sequence[float]) -> bool:
    return len(times) >= _FAR_ROUNDS and min(times) > _FAR * max(against)


def level(times: Sequence[float]) -> float:
    """What contrasts compare: their mean, with the outliers pulled in, of logarithms."""
    return statistics.fmean(winsorised([math.log(t) for t in times]))


def close(times: Sequence[float], against: Sequence[float], margin: float = _MARGIN) -> bool:
    """Whether the medians lie within the margin, as a tie that a short race could not prove does."""
    return abs(math.log(statistics.median(times) / statistics.median(against))) <= math.log1p(margin)
