"""Times a kernel on the GPU by CUDA events: batches of launches, or of replays of a graph that holds a batch.

Launched eagerly, a call takes as long as its launch when that is longer than the kernel: what a user of the kernel
would see. A graph has the launches behind it. Cold calls rotate over buffers that exceed the L2 cache (`cpu.rotated`
makes them) instead of overwriting the cache before each call: they need no event pair of their own, work within a
graph, and leave no dirty lines whose write-back would fall into the timed kernel.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from perfsuite.kernel import Run
from perfsuite.measure.cpu import Buffers
from perfsuite.policy import Policy
from perfsuite.trial import Disturbance, Measurement

# A sample lasts at least this long: events tick in 0.5 us, and the GPU waits for the first launch of a batch.
SAMPLE_SECONDS = 2e-3
FEWEST, MOST = 7, 200
# Clocks have risen when this many samples in a row lie within this fraction of each other.
_STEADY, _STEADY_SAMPLES, _WARM_UP_SHARE = 0.03, 5, 0.3
_SHORTEST = 1e-7


@dataclass
class Timer:
    """One kernel with its buffers on the GPU, ready to be sampled; a race holds several and takes them in turn."""

    run: Run
    buffers: Sequence[Buffers]
    policy: Policy
    calls: int = 1
    _turn: Iterator[Buffers] = field(init=False)

    def __post_init__(self) -> None:
        self.move(self.buffers)

    def sample(self) -> float:
        """Seconds of one call, as the mean over `calls` calls."""
        event: Any = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        batch = self._graph.replay if self.policy.launch == "graph" else self._launch
        start.record()
        batch()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3 / self.calls

    def move(self, buffers: Sequence[Buffers]) -> None:
        """Go on with other buffers of the same shapes; a graph is captured anew."""
        self.buffers = buffers
        self._turn = itertools.cycle(buffers)
        self.__dict__.pop("_graph", None)

    def in_race(self) -> tuple[float, list[float], list[Disturbance]]:
        """A sample in a race, none being taken again: events see nothing of what disturbs the host.

        The L2 cache that other kernels emptied is refilled first, so that warm means warm.
        """
        if self.policy.cache == "warm":
            self._launch()
        return max(_SHORTEST, self.sample()), [], []

    def warm_up(self, seconds: float) -> bool:
        """Call until the times are steady, then choose how many calls make a sample; whether they became steady."""
        self._launch()  # what is compiled at the first call, a graph must not see
        deadline = time.perf_counter() + seconds
        recent: list[float] = []
        steady = False
        while not steady and (len(recent) < 2 or time.perf_counter() < deadline):
            recent = [*recent[-_STEADY_SAMPLES + 1 :], self.sample()]
            middle = max(_SHORTEST, statistics.median(recent))
            if middle * self.calls < SAMPLE_SECONDS:
                self._batch(max(self.calls + 1, int(SAMPLE_SECONDS / middle) + 1))
                recent = []
                continue
            steady = len(recent) == _STEADY_SAMPLES and max(recent) - min(recent) <= _STEADY * middle
        return steady

    def _batch(self, calls: int) -> None:
        """Let a sample be of `calls` calls; in a graph whole rounds over the buffers, so that replays stay cold."""
        if self.policy.launch == "graph":
            calls = -(-calls // len(self.buffers)) * len(self.buffers)
            self.__dict__.pop("_graph", None)
        self.calls = calls

    @cached_property
    def _graph(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            self._launch()
        return graph

    def _launch(self) -> None:
        run, fresh = self.run, self.policy.output == "fresh"
        for inputs, outputs in itertools.islice(self._turn, self.calls):
            run(inputs, [torch.empty_like(t) for t in outputs] if fresh else outputs)


def measure(timer: Timer, seconds: float) -> Measurement:
    """Samples for about `seconds`, at least FEWEST.

    UNSTEADY when the times did not settle before, or drifted meanwhile, as they do when the GPU lowers its clocks.
    """
    steady = timer.warm_up(_WARM_UP_SHARE * seconds)
    samples: list[float] = []
    start = time.perf_counter()
    while len(samples) < FEWEST or (len(samples) < MOST and time.perf_counter() - start < seconds):
        samples.append(max(_SHORTEST, timer.sample()))
    third = len(samples) // 3
    first, last = statistics.median(samples[:third]), statistics.median(samples[-third:])
    drifted = abs(last - first) > _STEADY * first
    return Measurement(tuple(samples), timer.calls, () if steady and not drifted else (Disturbance.UNSTEADY,))
