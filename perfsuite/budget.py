"""Where the time of a tuning goes: shares by what is left to gain, and what the next step will probably take."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from perfsuite.op import Op, Workload

# The ceilings may take this share of a budget, the survey this share of what they leave.
PROBING, SURVEYING = 0.25, 0.35
# Seconds taken for a trial before any was seen; what a race may take beyond its rounds, in trials.
_TRIAL, _RACE = 1.0, 3.0
# A workload is begun with time for this many trials of each kernel, and its race.
_FEW = 2

Times = Mapping[Workload, float]
Ideals = Mapping[Workload, float | None]


def weights(times: Times) -> dict[Workload, float]:
    """Each workload's share of the time of its models, summed over them; `times` are of one call in seconds.

    A model is one on one dtype. A workload that no model has weighs as much as the others do on average.
    """
    totals: dict[tuple[str, str], float] = defaultdict(float)
    for workload, seconds in times.items():
        for model, calls in workload.models:
            totals[model, workload.dtype] += calls * seconds
    of_models = {
        workload: sum(calls * seconds / totals[model, workload.dtype] for model, calls in workload.models)
        for workload, seconds in times.items()
        if workload.models
    }
    mean = statistics.fmean(of_models.values()) if of_models else 1.0
    return {workload: of_models.get(workload, mean) for workload in times}


def gains(times: Times, ideals: Ideals) -> dict[Workload, float]:
    """What is left to gain: the weight of each workload, times the share of its seconds that is above its ceiling.

    Without a known ceiling that is all of them.
    """
    return {
        workload: weight * max(0.0, 1.0 - (ideals.get(workload) or 0.0) / times[workload])
        for workload, weight in weights(times).items()
    }


def likely(workloads: Collection[Workload], times: Times, ideals: Ideals) -> dict[Workload, float]:
    """The known times; for the other workloads what they take if they miss their ceiling as the median does.

    Where no ceiling is known either, the median of the known times.
    """
    misses = [seconds / ideal for workload, seconds in times.items() if (ideal := ideals.get(workload))]
    miss = statistics.median(misses) if misses else 1.0
    middle = statistics.median(times.values()) if times else 1.0
    return {w: times[w] if w in times else (miss * ideal if (ideal := ideals.get(w)) else middle) for w in workloads}


def share(gain: float, others: float, remaining: float, least: float) -> float:
    """Seconds of the `remaining` for a workload with that `gain` before `others` together; 0.0 if `least` is more."""
    if remaining < least:
        return 0.0
    if math.isinf(remaining):
        return remaining
    fair = gain / (gain + others) if gain + others > 0.0 else 0.0
    return min(remaining, max(least, fair * remaining))


def spread(workloads: Sequence[Workload], ops: Mapping[str, Op]) -> list[Workload]:
    """The workloads in an order that may be cut anywhere: of each op and dtype the same share is done by then.

    Of each the ends of its sizes come first, then the middles of the largest gaps.
    """
    groups: dict[tuple[str, str], list[Workload]] = defaultdict(list)
    for workload in workloads:
        groups[workload.op, workload.dtype].append(workload)
    places: list[tuple[float, int, Workload]] = []
    for number, group in enumerate(groups.values()):
        sized = sorted(group, key=lambda w: (ops[w.op].traffic(w), str(w)))
        order = _halved(len(sized))
        places += [(at / len(sized), number, sized[place]) for at, place in enumerate(order)]
    return [workload for _, _, workload in sorted(places, key=lambda place: place[:2])]


def _halved(count: int) -> list[int]:
    """0 to count - 1: the last, the first, then always the middle of the widest gap."""
    order = [count - 1, 0][:count]
    while len(order) < count:
        taken = sorted(order)
        low, high = max(itertools.pairwise(taken), key=lambda gap: gap[1] - gap[0])
        order.append((low + high) // 2)
    return order


@dataclass
class Costs:
    """What trials, races and builds have taken in this tuning, in wall seconds: what the next ones probably take.

    `size` of a workload is what the time of its trials grows with: the bytes that are made, checked and moved.
    """

    size: Callable[[Workload], float]
    trials: dict[Workload, float] = field(default_factory=dict)
    races: list[float] = field(default_factory=list)
    builds: list[float] = field(default_factory=list)

    @property
    def build(self) -> float:
        """The mean of the builds beside the timing; 0.0 where there are none, for then a trial includes its build."""
        return statistics.fmean(self.builds) if self.builds else 0.0

    def trial(self, workload: Workload) -> float:
        """As the shortest one of the workload; for a new one as that of the nearest in size, in proportion if larger.

        Nine of ten trials of a survey took 0.1 to 0.4 s, and those of the largest workloads 14 s.
        """
        if workload in self.trials:
            return self.trials[workload]
        if not self.trials:
            return _TRIAL
        size = max(1.0, self.size(workload))
        near = min(self.trials, key=lambda known: abs(math.log(size / max(1.0, self.size(known)))))
        return self.trials[near] * max(1.0, size / max(1.0, self.size(near)))

    def tried(self, workload: Workload, took: float) -> None:
        """The first call of a compiler in a process takes seconds, which say nothing of the next trial."""
        self.trials[workload] = min(took, self.trials.get(workload, took))

    def race(self, workload: Workload, rounds: float) -> float:
        """As many trials as the races so far took; at most the seconds of the rounds and what comes before them."""
        trial = self.trial(workload)
        return min(rounds + _RACE * trial, statistics.median(self.races) * trial if self.races else math.inf)

    def raced(self, workload: Workload, took: float) -> None:
        self.races.append(took / self.trial(workload))

    def least(self, workload: Workload, kernels: int, rounds: float) -> float:
        """What a workload needs to be worth beginning: a few trials of each kernel, their builds, and its race."""
        return _FEW * kernels * (self.trial(workload) + self.build) + self.race(workload, rounds)
