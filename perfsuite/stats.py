"""Statistics of paired samples: when one kernel may be called faster than another."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby

# Samples taken one after the other in one place in memory, or round by round in one process of a race.
BLOCK = 4
# The number of values at which a confidence sequence is tightest, for its width.
_TIGHTEST = 20
# More rounds in the same processes cannot narrow what these differ by. Once that makes up so much of the variance of
# the mean, it is known well enough to say so.
_SETTLED = 0.9
# Values' worth of what all kernels of a race say of the variance of one.
_PRIOR = 8.0


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


def quickest(times: Sequence[float], of: int) -> list[float]:
    """The quickest `of` so many successive samples, again and again; of all, where they are fewer.

    What disturbs a sample only adds to it, so the quickest of a few is steadier than their mean: Chen and Revels,
    "Robust benchmarking in noisy environments", HPEC 2016. The log-ratios of two kernels of 65 us in the same rounds
    had a standard deviation of 10 %, those of the quickest of two rounds 3.7 %, of four 1.8 %.
    """
    return [min(times[at : at + of]) for at in range(0, len(times) - of + 1, of)] or [min(times)]


def quiet(times: Sequence[float], of: int = BLOCK) -> float:
    """Seconds that a kernel takes when little disturbs it: the geometric mean of the quickest, outliers pulled in."""
    return math.exp(statistics.fmean(winsorised([math.log(t) for t in quickest(times, of)])))


@dataclass(frozen=True)
class Contrast:
    """Paired times as log-ratios: their mean, variance and number, and what the differences between processes add.

    `variance` is that of one value, as far as the mean of many is concerned: values taken together in one process may
    resemble each other. `between` is the variance of the mean that comes from the `sources`, the processes: the moment
    estimator of one-way analysis of variance, divided by their number. `prior` is how many values' worth of knowledge
    about the variance came from elsewhere.
    """

    mean: float
    variance: float
    count: int
    between: float = 0.0
    sources: int = 1
    prior: float = 0.0

    @classmethod
    def of(cls, times: Sequence[float], against: Sequence[float], sources: Sequence[int] = ()) -> Contrast:
        """Of `times` (seconds) to those of another kernel at the same moments; ValueError if unpaired.

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
        return cls(statistics.fmean(ratios), variance, len(ratios), between, len(groups) or 1)

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
        """Whether up to `most` values from the same processes may exclude 0, or all beyond the margin.

        They may if they do for a mean one standard error from this one: after a dozen it says little.
        """
        within = self.variance / self.count
        settled = self.between >= _SETTLED * (within + self.between)
        expected = replace(self, between=self.between if settled else 0.0).half(error, most)
        off = math.sqrt(within)
        return expected < max(abs(self.mean) + off, math.log1p(margin) - max(0.0, abs(self.mean) - off))

    def half(self, error: float, count: int) -> float:
        """Half the width of the confidence sequence's interval at `count` values; infinite while it says nothing."""
        if self.count < 3 or count < 3:
            return math.inf
        deviation = math.sqrt(self.variance / count + self.between)
        return _reach(count, error) * deviation if deviation > 0.0 else 0.0

    def chance(self, margin: float = 0.0) -> float:
        """How likely the mean is in truth more than `margin` below 0: the posterior, which knew nothing of it before.

        A t distribution, its degrees of freedom by Welch and Satterthwaite. What a choice goes by, not a verdict: it
        may be looked at as often as one likes, but says how likely an error is now, not ever.
        """
        from scipy.special import stdtr

        if self.count < 3:
            return 0.5
        within = self.variance / self.count
        variance, below = within + self.between, -math.log1p(margin) - self.mean
        if variance == 0.0:
            return float(below > 0.0)
        parts = [(within, self.count - 1 + self.prior), (self.between, self.sources - 1)]
        freedom = variance**2 / sum(part**2 / own for part, own in parts if part > 0.0)
        return float(stdtr(freedom, below / math.sqrt(variance)))


def moderated(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """The contrasts of several kernels in the same rounds, the variance of each drawn towards the middle of all.

    Kernels in one race meet the same noise, and a variance of six values is a poor one: Smyth, "Linear models and
    empirical Bayes methods for assessing differential expression", 2004. Fewer than three are left as they are.
    """
    if len(contrasts) < 3:
        return list(contrasts)
    middle = statistics.median(c.variance for c in contrasts)
    return [
        replace(c, variance=((c.count - 1) * c.variance + _PRIOR * middle) / (c.count - 1 + _PRIOR), prior=_PRIOR)
        for c in contrasts
    ]


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
