"""Statistics of paired samples: when one kernel may be called faster than another."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from enum import StrEnum


class Verdict(StrEnum):
    """What a race says of a kernel against another; DEFAULT is the baseline itself."""

    FASTER = "FASTER"
    SLOWER = "SLOWER"
    TIE = "TIE"
    UNDECIDED = "UNDECIDED"
    DEFAULT = "DEFAULT"


def confidence_sequence(values: Sequence[float], error: float, tuned_for: int = 20) -> tuple[float, float]:
    """Interval for the mean of `values` that holds at every number of values at once with probability 1 - error.

    So it may be looked at after every round and a race stopped whenever it decides. Exact for normal values of unknown
    variance: the values m against which a t-test with a normal prior on the effect size, a test martingale whatever the
    variance, has not yet grown to 1/error. Lai, "On confidence sequences", Annals of Statistics 4, 1976; Wang and
    Ramdas, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance", 2023. `tuned_for`
    is the number of values at which the interval is tightest. Fewer than three values say nothing.
    """
    n = len(values)
    if n < 3:
        return -math.inf, math.inf
    mean = statistics.fmean(values)
    variance = statistics.variance(values, mean)
    if variance == 0.0:
        return mean, mean
    half = _reach(n, error, tuned_for) * math.sqrt(variance / n)
    return mean - half, mean + half


def _reach(n: int, error: float, tuned_for: int) -> float:
    """Half the width of the sequence's interval at n values, in standard errors of the mean; infinite at first."""
    budget = -2.0 * math.log(error)
    prior = (budget + math.log(budget + 1.0)) / tuned_for
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


def compare(
    times: Sequence[float],
    against: Sequence[float],
    margin: float = 0.01,
    error: float = 0.01,
    sources: Sequence[int] = (),
) -> Verdict:
    """Verdict on paired `times` (seconds, one per round) against those of another kernel in the same rounds.

    FASTER or SLOWER when the confidence sequence of the log-ratio excludes 0 *and* its centre lies beyond the margin;
    TIE when the whole interval lies within the margin; else UNDECIDED. `sources` names the process that each pair was
    taken in: what the processes differ by beyond chance widens the interval.
    """
    if len(times) != len(against):
        raise ValueError(f"paired samples differ in number: {len(times)} and {len(against)}")
    ratios = winsorised([math.log(a / b) for a, b in zip(times, against)])
    low, high = confidence_sequence(ratios, error)
    centre = statistics.fmean(ratios)
    wider = _widening(ratios, sources)
    low, high = centre - wider * (centre - low), centre + wider * (high - centre)
    edge = math.log1p(margin)
    if -edge <= low and high <= edge:
        return Verdict.TIE
    if high < 0.0 and centre < -edge:
        return Verdict.FASTER
    if low > 0.0 and centre > edge:
        return Verdict.SLOWER
    return Verdict.UNDECIDED


def _widening(values: Sequence[float], sources: Sequence[int]) -> float:
    """How much larger the standard error of the mean is for the variance between sources; 1.0 if there is none.

    The variance between sources is the moment estimator of one-way analysis of variance.
    """
    groups = [[v for v, s in zip(values, sources) if s == source] for source in sorted(set(sources))]
    if len(groups) < 2 or min(map(len, groups)) < 2:
        return 1.0
    variance = statistics.variance(values)
    within = statistics.fmean(statistics.variance(group) / len(group) for group in groups)
    between = max(0.0, statistics.variance([statistics.fmean(group) for group in groups]) - within)
    if variance == 0.0 or between == 0.0:
        return 1.0
    return math.sqrt(1.0 + between / len(groups) / (variance / len(values)))
