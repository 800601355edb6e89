"""Watches over samples: what disturbed one, as the operating system and a reference loop tell."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections import deque
from collections.abc import Callable

from perfsuite.trial import Disturbance

Taken = tuple[float, frozenset[Disturbance]]

# The reference loop: one power of big integers, in registers and the first-level cache. 25 us on a Zen 5 core.
_MODULUS, _BASE, _EXPONENT = (1 << 521) - 1, 3**200, 65537 * 65539
# It took this much longer than usual: the clock fell, or something else has used the core's units.
_SLOWER = 1.1
# A barrier whose partner was switched out waits for milliseconds, whatever the kernel takes.
_STALL = 5.0
_REMEMBERED, _FEWEST = 31, 5
# Where most of so many samples were disturbed, the next one will be too: taking it again costs time and gains nothing.
_HOPELESS = 8
# Stolen time is told in ticks of 10 ms: asking after every sample of 50 us would cost more than it tells.
_STEAL_EVERY = 5e-3


class Sentinel:
    """Takes samples and says of each what disturbed it.

    A sample is marked SWITCHES when one of the process's threads was switched out, FAULTS when a page was read from
    disk, STEAL when the hypervisor ran somebody else, CLOCK when the reference loop after it took longer than usual,
    STALLED when it is far longer than the others and threads wait for each other.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._references: deque[float] = deque(maxlen=_REMEMBERED)
        self._times: deque[float] = deque(maxlen=_REMEMBERED)
        self._marked: deque[bool] = deque(maxlen=_HOPELESS)
        self._steal, self._unasked = stolen_ticks(), 0.0

    def take(self, sample: Callable[[], float]) -> Taken:
        """One sample in seconds, and what disturbed it."""
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        seconds = sample()
        marks = set()
        if self._clock_fell():
            marks.add(Disturbance.CLOCK)
        elapsed = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_SELF)
        if after.ru_nivcsw > before.ru_nivcsw:
            marks.add(Disturbance.SWITCHES)
        if after.ru_majflt > before.ru_majflt:
            marks.add(Disturbance.FAULTS)
        if self._stolen(elapsed):
            marks.add(Disturbance.STEAL)
        if self._stalled(seconds):
            marks.add(Disturbance.STALLED)
        return seconds, frozenset(marks)

    def undisturbed(self, sample: Callable[[], float], tries: int = 3) -> tuple[float, list[float], list[Disturbance]]:
        """A sample, those that were taken again before it, and the marks of all.

        After `tries` disturbed ones, or at once where most of the last were, the sample counts: its marks say so.
        """
        disturbed: list[float] = []
        marks: list[Disturbance] = []
        while True:
            seconds, found = self.take(sample)
            marks += sorted(found)
            self._marked.append(bool(found))
            hopeless = len(self._marked) == _HOPELESS and 2 * sum(self._marked) > _HOPELESS
            if not found or hopeless or len(disturbed) + 1 == tries:
                return seconds, disturbed, marks
            disturbed.append(seconds)

    def _reference(self) -> float:
        start = time.perf_counter()
        pow(_BASE, _EXPONENT, _MODULUS)
        return time.perf_counter() - start

    def _clock_fell(self) -> bool:
        reference = self._reference()
        usual = statistics.median(self._references) if len(self._references) >= _FEWEST else reference
        self._references.append(reference)
        return reference > _SLOWER * usual

    def _stolen(self, seconds: float) -> bool:
        self._unasked += seconds
        if self._unasked < _STEAL_EVERY:
            return False
        self._unasked = 0.0
        before, self._steal = self._steal, stolen_ticks()
        return self._steal > before

    def _stalled(self, seconds: float) -> bool:
        if self._threads == 1:
            return False
        usual = statistics.median(self._times) if len(self._times) >= _FEWEST else seconds
        self._times.append(seconds)
        return seconds > _STALL * usual


def stolen_ticks() -> int:
    """Clock ticks that the hypervisor took from the cores this process may use; 0 where that is not told."""
    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else {"cpu"}
    try:
        with open("/proc/stat") as lines:  # noqa: PTH123, half the time of Path.open
            return sum(int(fields[8]) for line in lines if len(fields := line.split()) > 8 and fields[0] in mine)
    except (OSError, ValueError):
        return 0
