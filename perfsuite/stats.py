"""Statistics of paired samples: when one kernel may be called faster than another."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

# The number of values at which a confidence sequence is tightest, for its width.
_TIGHTEST = 20
# More rounds in the same processes cannot narrow what these differ by. Once that makes up so much of the variance of
# the mean, it is known well enough to say so.
_SETTLED = 0.9


class Verdict(StrEnum):
    """What a race says of a kernel against another; DEFAULT is the baseline itself."""

    FASTER = "FASTER"
    SLOWER = "SLOWER"
    TIE = "TIE"
    UNDECIDED = "UNDECIDED"
    DEFAULT = "DEFAULT"


def confidence_sequence(values: Sequence[float], error: float) -> tuple[float, float]:
    """Interval for the mean of `values` that holds at every number of values at once with probability 1 - error.

    So it may be looked at after every round and a race stopped whenever it decides. Exact for normal values of unknown
    variance: the values m against which a t-test with a normal prior on the effect size, a test martingale whatever the
    variance, has not yet grown to 1/error. Lai, "On confidence sequences", Annals of Statistics 4, 1976; Wang and
    Ramdas, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance", 2023. Fewer than
    three values say nothing.
    """
    if len(values) < 3:
        return -math.inf, math.inf
    mean = statistics.fmean(values)
    half = Contrast(mean, _variance(values), len(values)).half(error, len(values))
    return mean - half, mean + half


def _reach(n: int, error: float) -> float:
    """Half the width of the sequence's interval at n values, in standard errors of the mean; infinite at first."""
    budget = -2.0 * math.log(error)
    prior = (budget + math.log(budget + 1.0)) / _TIGHTEST
    spread = 1.0 + n * prior
    grown = (spread / error**2) ** (1.0 / n)
    if grown >= spread:
        return math.inf
    return math.sqrt((n - 1) * (grown - 1.0) / (1.0 - grown / spread))


def winsorised(values: Sequence[float]) -> list[float]:
    """The values with everything beyond three times the median absolute deviation pulled in to that bound.

    A disturbance of milliseconds in one round would otherwise widen the interval of a whole race.
    """
    middle = statistics.median(values)
    reach = 3.0 * 1.4826 * statistics.median(abs(v - middle) for v in values)
    return [min(max(v, middle - reach), middle + reach) for v in values] if reach > 0.0 else list(values)


@dataclass(frozen=True)
class Contrast:
    """Paired times as log-ratios: their mean, variance and number, and what the differences between processes add.

    `variance` is that of one round, as far as the mean of many is concerned: rounds taken together in the same memory
    may resemble each other. `between` is the variance of the mean that comes from processes: the moment estimator of
    one-way analysis of variance, divided by their number.
    """

    mean: float
    variance: float
    count: int
    between: float = 0.0

    @classmethod
    def of(cls, times: Sequence[float], against: Sequence[float], sources: Sequence[int] = ()) -> Contrast:
        """Of `times` (seconds, one per round) to those of another kernel in the same rounds; ValueError if unpaired.

        `sources` names the process that each pair was taken in; neighbours of one source are a block.
        """
        if len(times) != len(against):
            raise ValueError(f"paired samples differ in number: {len(times)} and {len(against)}")
        ratios = winsorised([math.log(a / b) for a, b in zip(times, against)])
        variance = _variance(ratios) if len(ratios) > 1 else math.inf
        groups = _blocks(ratios, sources)
        together, blocks = _within(groups), sum(map(len, groups))
        if together is not None:
            variance = max(variance, together * len(ratios) / blocks)
        between = _between(groups, variance / len(ratios) * len(groups)) if groups else 0.0
        return cls(statistics.fmean(ratios), variance, len(ratios), between)

    def verdict(self, margin: float, error: float) -> Verdict:
        """FASTER or SLOWER when the confidence sequence excludes 0 *and* the mean lies beyond the margin.

        TIE when the whole interval lies within the margin; else UNDECIDED.
        """
        half, edge = self.half(error, self.count), math.log1p(margin)
        if abs(self.mean) + half <= edge:
            return Verdict.TIE
        if half < abs(self.mean) and abs(self.mean) > edge:
            return Verdict.FASTER if self.mean < 0.0 else Verdict.SLOWER
        return Verdict.UNDECIDED

    def close(self, margin: float, error: float) -> bool:
        """Whether the whole interval lies within the margin."""
        return abs(self.mean) + self.half(error, self.count) <= math.log1p(margin)

    def may_be_decided(self, margin: float, error: float, most: int) -> bool:
        """Whether up to `most` rounds in the same processes may exclude 0, or all beyond the margin.

        They may if they do for a mean one standard error from this one: after a dozen rounds it says little.
        """
        within = self.variance / self.count
        settled = self.between >= _SETTLED * (within + self.between)
        expected = Contrast(self.mean, self.variance, self.count, self.between if settled else 0.0).half(error, most)
        off = math.sqrt(within)
        return expected < max(abs(self.mean) + off, math.log1p(margin) - max(0.0, abs(self.mean) - off))

    def half(self, error: float, count: int) -> float:
        """Half the width of the confidence sequence's interval at `count` rounds; infinite while it says nothing."""
        if self.count < 3 or count < 3:
            return math.inf
        deviation = math.sqrt(self.variance / count + self.between)
        return _reach(count, error) * deviation if deviation > 0.0 else 0.0


def compare(
    times: Sequence[float],
    against: Sequence[float],
    margin: float = 0.01,
    error: float = 0.01,
    sources: Sequence[int] = (),
) -> Verdict:
    """Verdict on paired `times` (seconds, one per round) against those of another kernel in the same rounds.

    `sources` names the process that each pair was taken in: what the processes differ by beyond chance widens the
    interval.
    """
    return Contrast.of(times, against, sources).verdict(margin, error)


def _variance(values: Sequence[float]) -> float:
    """Of two values and more. That of `statistics` works with fractions and took 10 times as long on 60 values."""
    mean = statistics.fmean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _blocks(values: Sequence[float], sources: Sequence[int]) -> list[list[float]]:
    """The means of each source's blocks; empty where not two sources have two values each."""
    means: dict[int, list[float]] = {}
    sizes: Counter[int] = Counter(sources)
    for source, block in groupby(zip(values, sources), key=lambda pair: pair[1]):
        means.setdefault(source, []).append(statistics.fmean(value for value, _ in block))
    return list(means.values()) if len(means) > 1 and min(sizes.values()) > 1 else []


def _within(groups: Sequence[Sequence[float]]) -> float | None:
    """The variance of a block's mean around its source's; None before every source has two."""
    if not groups or min(map(len, groups)) < 2:
        return None
    return statistics.fmean(_variance(group) for group in groups)


def _between(groups: Sequence[Sequence[float]], within: float) -> float:
    """The variance that differences between sources give to the mean; `within` is that of a source's own mean."""
    means = [statistics.fmean(group) for group in groups]
    return max(0.0, _variance(means) - within) / len(groups)
