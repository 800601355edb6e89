"""Times a kernel on the CPU: warm-up until steady, batches long enough for the clock, disturbed samples taken again."""

from __future__ import annotations

import itertools
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from perfsuite.kernel import Run, Tensors
from perfsuite.policy import Policy
from perfsuite.trial import Disturbance, Measurement

if TYPE_CHECKING:
    import torch

# A sample lasts at least this long: the clock ticks in about 30 ns, the loop around a call costs about 60 ns.
SAMPLE_SECONDS = 50e-6
FEWEST, MOST = 7, 200
# Warm-up has ended when the last calls lie within this fraction of each other, or when it has used up its share.
_STEADY, _STEADY_CALLS, _WARM_UP_SHARE = 0.05, 3, 0.3
_CLOCK_TICKS = 100
_REFILLED = 20e-3
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
    _turn: Iterator[Buffers] = field(init=False)

    def __post_init__(self) -> None:
        self._turn = itertools.cycle(self.buffers)

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

    def after_others(self) -> float:
        """A sample in a race: the caches that other kernels emptied are refilled first, so that warm means warm.

        Beyond _REFILLED seconds a call moves more than any cache holds, and there is nothing to refill.
        """
        if self.policy.cache == "cold":
            return self.sample()
        first = self.sample()
        return first if first * self.calls > _REFILLED else self.sample()

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


def measure(timer: Timer, seconds: float) -> Measurement:
    """Samples for about `seconds`, at least FEWEST.

    A sample during which the thread was switched out, or a page was read from disk, is taken again; when that is not
    enough within the budget the disturbed ones are kept and the measurement carries the warning.
    """
    steady = timer.warm_up(_WARM_UP_SHARE * seconds)
    quiet: list[float] = []
    disturbed: list[float] = []
    steal, start = _steal_ticks(), time.perf_counter()
    faults = 0
    while True:
        before = resource.getrusage(resource.RUSAGE_SELF)
        sample = timer.sample()
        after = resource.getrusage(resource.RUSAGE_SELF)
        faults += after.ru_minflt - before.ru_minflt
        (disturbed if after.ru_nivcsw > before.ru_nivcsw else quiet).append(sample)
        elapsed = time.perf_counter() - start
        fewest = FEWEST if sample < _LONG else _FEWEST_LONG
        enough = elapsed >= seconds and len(quiet) >= fewest
        if enough or len(quiet) >= MOST or (elapsed > 3.0 * seconds and len(quiet) + len(disturbed) >= fewest):
            break
    warnings = _warnings(timer, (quiet, disturbed), fewest, faults, steady)
    if (_steal_ticks() - steal) / _CLOCK_TICKS > 0.02 * elapsed:
        warnings.append(Disturbance.STEAL)
    samples = quiet if len(quiet) >= fewest else quiet + disturbed
    return Measurement(tuple(samples), timer.calls, tuple(sorted(warnings)))


def _warnings(
    timer: Timer, samples: tuple[list[float], list[float]], fewest: int, faults: int, steady: bool
) -> list[Disturbance]:
    quiet, disturbed = samples
    every = quiet + disturbed
    found = []
    if len(disturbed) > len(quiet) // 4 or len(quiet) < fewest:
        found.append(Disturbance.SWITCHES)
    if faults > 2 * len(every) * timer.calls and timer.policy.output == "reused":
        found.append(Disturbance.FAULTS)
    if not steady:
        found.append(Disturbance.UNSTEADY)
    # A barrier whose partner was switched out waits milliseconds, whatever the kernel takes.
    if timer.policy.threads > 1 and max(every) > 20.0 * statistics.median(every):
        found.append(Disturbance.STALLED)
    return found


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


def _steal_ticks() -> int:
    """Clock ticks that the hypervisor took from this machine, over all cores; 0 where that is not told."""
    try:
        return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8])
    except (OSError, IndexError, ValueError):
        return 0
