"""Times a kernel on the CPU: warm-up until steady, batches long enough for the clock, disturbed samples taken again."""

from __future__ import annotations

import itertools
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from perfsuite.kernel import Run, Tensors
from perfsuite.measure.sentinel import Sentinel
from perfsuite.policy import Policy
from perfsuite.stats import BLOCK
from perfsuite.trial import Disturbance, Measurement

if TYPE_CHECKING:
    import torch

# A sample lasts at least this long: the clock ticks in about 30 ns, the loop around a call costs about 60 ns.
SAMPLE_SECONDS = 50e-6
FEWEST, MOST = 7, 200
# Warm-up has ended when the last calls lie within this fraction of each other, or when it has used up its share.
_STEADY, _STEADY_CALLS, _WARM_UP_SHARE = 0.05, 3, 0.3
# Calls that fill the caches again, within so many seconds: a layer_norm of 6 MB whose stores go through the caches took
# 1.2 to 1.5 times as long after one call as after three, by when the L3 of a Zen 4 core holds its output.
REFILLS, _REFILL_SECONDS = 4, 8e-3
# What takes longer than this moves more than any cache holds.
_TOO_LONG = 20e-3
# A disturbance of a larger share of the samples is a warning.
_TOLERATED = 0.2
# Kernels that take longer than this get fewer samples.
_LONG, _FEWEST_LONG = 30e-3, 4

Buffers = tuple[Tensors, Tensors]


@dataclass
class Timer:
    """One kernel with its buffers, ready to be sampled; a race holds several and takes them in turn."""

    run: Run
    buffers: Sequence[Buffers]
    policy: Policy
    calls: int = 1
    sentinel: Sentinel = field(init=False)
    _long: bool = field(init=False, default=False)
    _turn: Iterator[Buffers] = field(init=False)

    def __post_init__(self) -> None:
        self.sentinel = Sentinel(self.policy.threads)
        self.move(self.buffers)

    def move(self, buffers: Sequence[Buffers]) -> None:
        """Go on with other buffers of the same shapes."""
        self.buffers = buffers
        self._turn = itertools.cycle(buffers)

    def sample(self) -> float:
        """Seconds of one call, as the mean over `calls` calls."""
        batch = [next(self._turn) for _ in range(self.calls)]
        run, fresh = self.run, self.policy.output == "fresh"
        if fresh:
            start = time.perf_counter()
            for inputs, outputs in batch:
                run(inputs, _allocated(outputs))
            return (time.perf_counter() - start) / self.calls
        start = time.perf_counter()
        for inputs, outputs in batch:
            run(inputs, outputs)
        return (time.perf_counter() - start) / self.calls

    def in_race(self) -> tuple[float, list[float], list[Disturbance]]:
        """A sample in a race, those that were disturbed and taken again, and what disturbed them.

        The caches that other kernels emptied are refilled first, so that warm means warm.
        """
        if self.policy.cache == "warm":
            self.refill()
        return self.sentinel.undisturbed(self.sample)

    def refill(self) -> None:
        """Call until the caches hold what they can of the buffers; a call that is too long shows that they cannot."""
        called, start = 0, time.perf_counter()
        while not self._long and called < REFILLS and time.perf_counter() - start < _REFILL_SECONDS:
            self._long = self.sample() * self.calls > _TOO_LONG
            called += self.calls

    def warm_up(self, seconds: float) -> bool:
        """Call until the times are steady, then choose how many calls make a sample; whether they became steady."""
        deadline = time.perf_counter() + seconds
        recent: list[float] = []
        steady = False
        while not steady and (len(recent) < 2 or time.perf_counter() < deadline):
            recent = [*recent[-_STEADY_CALLS + 1 :], self.sample()]
            middle = statistics.median(recent)
            if middle * self.calls < SAMPLE_SECONDS:
                self.calls = max(self.calls + 1, int(SAMPLE_SECONDS / middle) + 1)
                recent = []
                continue
            steady = len(recent) == _STEADY_CALLS and max(recent) - min(recent) <= _STEADY * middle
        return steady


def measure(timer: Timer, seconds: float, renewed: Callable[[], Sequence[Buffers]] | None = None) -> Measurement:
    """Samples for about `seconds`, at least FEWEST; every few of them in other memory where `renewed` gives some.

    A disturbed sample is taken again; when too few are quiet within three times the budget, the disturbed ones count
    too, and the measurement carries the warnings.
    """
    steady = timer.warm_up(_WARM_UP_SHARE * seconds)
    quiet: list[float] = []
    disturbed: list[float] = []
    marks: Counter[Disturbance] = Counter()
    faults, start = _minor_faults(), time.perf_counter()
    while True:
        if renewed is not None and (len(quiet) + len(disturbed)) % BLOCK == 0:
            faults += _moved(timer, renewed)
        sample, found = timer.sentinel.take(timer.sample)
        (disturbed if found else quiet).append(sample)
        marks.update(found)
        elapsed = time.perf_counter() - start
        fewest = FEWEST if sample < _LONG else _FEWEST_LONG
        enough = elapsed >= seconds and len(quiet) >= fewest
        if enough or len(quiet) >= MOST or (elapsed > 3.0 * seconds and len(quiet) + len(disturbed) >= fewest):
            break
    taken = len(quiet) + len(disturbed)
    warnings = warned(marks, taken)
    if _minor_faults() - faults > 2 * taken * timer.calls and timer.policy.output == "reused":
        warnings.add(Disturbance.FAULTS)
    if not steady:
        warnings.add(Disturbance.UNSTEADY)
    if len(quiet) < fewest:
        quiet, disturbed, warnings = quiet + disturbed, [], warnings | set(marks)
    return Measurement(tuple(quiet), timer.calls, tuple(sorted(warnings)), disturbed=tuple(disturbed))


def _moved(timer: Timer, renewed: Callable[[], Sequence[Buffers]]) -> int:
    """Move the timer to other memory and warm it; the page faults that this took."""
    before = _minor_faults()
    timer.move(renewed())
    timer.refill()
    return _minor_faults() - before


def warned(marks: Counter[Disturbance], taken: int) -> set[Disturbance]:
    """The disturbances worth a warning."""
    return {mark for mark, count in marks.items() if count > _TOLERATED * taken}


def _minor_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def rotated(first: Buffers, policy: Policy, cache_bytes: int) -> list[Buffers]:
    """The buffer sets that a policy rotates through: one when warm, more than 4x `cache_bytes` in all when cold."""
    if policy.cache == "warm":
        return [first]
    size = sum(t.numel() * t.element_size() for t in (*first[0], *first[1]))
    count = max(2, -(-4 * cache_bytes // max(1, size)))
    copies = ([[t.clone() for t in first[0]], [t.clone() for t in first[1]]] for _ in range(count - 1))
    return [first, *((inputs, outputs) for inputs, outputs in copies)]


def _allocated(outputs: Tensors) -> list[torch.Tensor]:
    import torch

    return [torch.empty_like(t) for t in outputs]
