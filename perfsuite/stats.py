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

    Asymptotic confidence sequence with a normal mixture boundary, so it may be looked at after every round and the
    race stopped whenever it decides: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit theory
    and asymptotic confidence sequences", theorem 2.2 and the choice of rho in its appendix. `tuned_for` is the number
    of values at which the interval is tightest. Fewer than three values say nothing.
    """
    n = len(values)
    if n < 3:
        return -math.inf, math.inf
    mean = statistics.fmean(values)
    variance = statistics.variance(values, mean)
    if variance == 0.0:
        return mean, mean
    rho2 = (-2.0 * math.log(error) + math.log(-2.0 * math.log(error) + 1.0)) / (tuned_for * variance)
    scaled = n * variance * rho2 + 1.0
    half = math.sqrt(scaled / (n * n * rho2) * math.log(scaled / (error * error)))
    return mean - half, mean + half


def winsorised(values: Sequence[float]) -> list[float]:
    """The values with everything beyond three times the median absolute deviation pulled in to that bound.

    A disturbance of milliseconds in one round would otherwise widen the interval of a whole race.
    """
    middle = statistics.median(values)
    reach = 3.0 * 1.4826 * statistics.median(abs(v - middle) for v in values)
    return [min(max(v, middle - reach), middle + reach) for v in values] if reach > 0.0 else list(values)


def compare(times: Sequence[float], against: Sequence[float], margin: float = 0.01, error: float = 0.01) -> Verdict:
    """Verdict on paired `times` (seconds, one per round) against those of another kernel in the same rounds.

    FASTER or SLOWER when the confidence sequence of the log-ratio excludes 0 *and* its centre lies beyond the margin;
    TIE when the whole interval lies within the margin; else UNDECIDED.
    """
    if len(times) != len(against):
        raise ValueError(f"paired samples differ in number: {len(times)} and {len(against)}")
    ratios = winsorised([math.log(a / b) for a, b in zip(times, against)])
    low, high = confidence_sequence(ratios, error)
    edge = math.log1p(margin)
    if -edge <= low and high <= edge:
        return Verdict.TIE
    if high < 0.0 and statistics.fmean(ratios) < -edge:
        return Verdict.FASTER
    if low > 0.0 and statistics.fmean(ratios) > edge:
        return Verdict.SLOWER
    return Verdict.UNDECIDED
