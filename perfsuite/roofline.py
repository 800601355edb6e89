"""What the machine can do at best: ceilings taken from the trials of the probes, and what they say of a workload."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from perfsuite.kernel import Config
from perfsuite.op import ITEMSIZE, Op, Workload
from perfsuite.policy import Policy
from perfsuite.trial import Trial

BANDWIDTH, COMPUTE = "bandwidth", "compute"
CALL = "call overhead"
# A time is called a measuring error only when it is this far below what any ceiling allows.
PLAUSIBLE = 0.5
# Beyond this footprint the last plateau is called DRAM even where the machine reports a larger cache: what a guest gets
# of a shared 480 MB cache was measured to end at 64 MiB.
SURELY_DRAM = 64 << 20
# What a further plateau must save of the squared error of log-bandwidth: a step by a factor of 1.4 with two footprints
# on either side saves just that.
STEP = math.log(1.4) ** 2

Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Ceiling:
    """The best trial of one probe on one workload with one config.

    `value` is bytes/s when `kind` is `bandwidth`, op/s when it is `compute`. `footprint` is the least bytes of the
    workload, `written` the share of them that is written. `isa` is empty when the config does not name one.
    """

    op: str
    kernel: str
    config: Config
    dtype: str
    isa: str
    threads: int
    footprint: int
    written: float
    seconds: float
    value: float
    kind: str

    @classmethod
    def of(cls, trial: Trial, op: Op) -> Ceiling:
        workload = trial.workload
        moved, work = op.traffic(workload), op.operations(workload)
        kind = BANDWIDTH if work < moved else COMPUTE
        return cls(
            op=op.name,
            kernel=trial.kernel,
            config=trial.config,
            dtype=arithmetic(op, workload),
            isa=str(dict(trial.config.values).get("isa", "")),
            threads=trial.policy.threads,
            footprint=op.least_bytes(workload),
            written=_written(op, workload),
            seconds=trial.seconds,
            value=(moved if kind == BANDWIDTH else work) / trial.seconds,
            kind=kind,
        )


@dataclass(frozen=True)
class Level:
    """One plateau of the copy bandwidth: `capacity` in bytes is where it ends (None for the last), in bytes/s."""

    name: str
    capacity: int | None
    bandwidth: float


@dataclass(frozen=True)
class Ceilings:
    """Every ceiling measured on one machine with one number of threads; `caches` are its reported (name, bytes), of a
    GPU the second level alone, however large.

    `cold`: the policy keeps the data out of the caches, so that only the bandwidth of the largest footprint counts.
    """

    every: tuple[Ceiling, ...] = ()
    caches: tuple[tuple[str, int], ...] = ()
    cold: bool = False

    @classmethod
    def of(cls, trials: Iterable[Trial], ops: Mapping[str, Op], policy: Policy) -> Ceilings:
        """The ceilings among trials of one machine: warm, the policy's device and threads, the best times.

        A probe that computes less than one operation per byte measures a bandwidth, any other a peak.
        """
        best: dict[tuple[Workload, str, Config], Trial] = {}
        for trial in trials:
            op = ops.get(trial.workload.op)
            alike = trial.policy.threads == policy.threads and trial.policy.device == policy.device
            warm = trial.policy.cache == "warm" and trial.measurement is not None
            if op is None or op.family != "probes" or not (alike and warm):
                continue
            key = (trial.workload, trial.kernel, trial.config)
            if key not in best or trial.seconds < best[key].seconds:
                best[key] = trial
        every = [Ceiling.of(trial, ops[trial.workload.op]) for trial in best.values()]
        machine = next((trial.machine for trial in best.values()), None)
        caches: tuple[tuple[str, int], ...] = (("L2", sys.maxsize),)
        if machine is not None and policy.device == "cpu":
            caches = tuple((name.removesuffix("d"), machine.cache(name)) for name in ("L1d", "L2", "L3"))
        return cls(tuple(every), caches, policy.cache == "cold")

    @cached_property
    def bandwidths(self) -> tuple[Ceiling, ...]:
        """The best bandwidth of every probe at every footprint, smallest footprint first."""
        best = _best_by(self.every, BANDWIDTH, lambda c: (c.op, c.footprint))
        return tuple(sorted(best, key=lambda c: (c.op, c.footprint)))

    @cached_property
    def peaks(self) -> tuple[Ceiling, ...]:
        """The best op/s of every dtype and ISA, the highest first."""
        return tuple(sorted(_best_by(self.every, COMPUTE, lambda c: (c.dtype, c.isa)), key=lambda c: -c.value))

    @cached_property
    def isas(self) -> tuple[str, ...]:
        return tuple(sorted({c.isa for c in self.every if c.isa}))

    def restricted(self, isa: str) -> Ceilings:
        """The ceilings of the kernels that were built for one ISA."""
        return replace(self, every=tuple(c for c in self.every if c.isa == isa))

    def curve(self, written: float = 0.5) -> Curve:
        """(footprint, bytes/s) of the probe whose share of written bytes is nearest, a copy if two are equally near.

        No footprint has less than a larger one: what slows a small copy is its call, and that is not the memory.
        """
        best: dict[tuple[float, float], dict[int, float]] = {}
        for c in self.bandwidths:
            points = best.setdefault((abs(c.written - written), abs(c.written - 0.5)), {})
            points[c.footprint] = max(c.value, points.get(c.footprint, 0.0))
        return _falling(sorted(best[min(best)].items())) if best else ()

    def bandwidth(self, footprint: int, written: float = 0.5) -> float | None:
        """Bytes/s of data of that many bytes, interpolated between the measured footprints on log-log axes."""
        curve = self.curve(written)
        if not curve:
            return None
        return curve[-1][1] if self.cold else _interpolated(curve, footprint)

    def peak(self, dtype: str) -> float | None:
        """The most op/s measured on that dtype."""
        return max((c.value for c in self.peaks if c.dtype == dtype), default=None)

    @cached_property
    def call_seconds(self) -> float:
        """What a probe's shortest call takes beyond moving its bytes; 0.0 unless that is most of the call."""
        calls = [c for c in self.every if c.kind == BANDWIDTH]
        if not calls:
            return 0.0
        shortest = min(calls, key=lambda c: c.seconds)
        bandwidth = _interpolated(self.curve(shortest.written), shortest.footprint)
        beyond = shortest.seconds * (1.0 - shortest.value / bandwidth)
        return beyond if beyond > 0.5 * shortest.seconds else 0.0

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The plateaus of the copy curve, fastest first; their capacities are its knees, not what the machine says.

        Only the names follow the reported sizes: a plateau that ends within 1.5 times a cache's size is that cache.
        """
        curve = self.curve()
        cuts = plateaus(curve)
        free = [cache for cache in self.caches if cache[1]]
        levels: list[Level] = []
        for start, end in cuts:
            bandwidth = statistics.median(value for _, value in curve[start:end])
            last = end == len(curve)
            knee = None if last else round(math.sqrt(curve[end - 1][0] * curve[end][0]))
            reached = curve[-1][0] if knee is None else knee
            if last and len(cuts) > 1 and reached >= SURELY_DRAM:
                name = "DRAM"
            else:
                while free and reached > 1.5 * free[0][1]:
                    free.pop(0)
                name = free.pop(0)[0] if free else ("DRAM" if last else f"L{len(levels) + 1}")
            levels.append(Level(name, knee, bandwidth))
        return tuple(levels)

    def level(self, footprint: int) -> Level | None:
        """Where data of that many bytes lives."""
        if self.cold:
            return self.levels[-1] if self.levels else None
        return next((level for level in self.levels if level.capacity is None or footprint <= level.capacity), None)

    def moving_seconds(self, op: Op, workload: Workload) -> float | None:
        """What moving the compulsory bytes alone takes, at the bandwidth measured where they live."""
        bandwidth = self.bandwidth(op.least_bytes(workload), _written(op, workload))
        return None if bandwidth is None else op.traffic(workload) / bandwidth

    def bounds(self, op: Op, workload: Workload) -> dict[str, float]:
        """Seconds below which each ceiling alone keeps the workload, by the ceiling's name; empty when one is unknown.

        The roofline model (Williams, Waterman, Patterson, CACM 2009), and the cost of a call beside it.
        """
        work, dtype = op.operations(workload), arithmetic(op, workload)
        moving, peak = self.moving_seconds(op, workload), self.peak(dtype)
        level = self.level(op.least_bytes(workload))
        if moving is None or level is None or (work > 0.0 and peak is None):
            return {}
        bounds = {f"{level.name} bandwidth": moving, CALL: self.call_seconds}
        if peak is not None:
            bounds[f"{dtype} peak"] = work / peak
        return bounds

    def ideal_seconds(self, op: Op, workload: Workload) -> float | None:
        """The time at which the workload would touch a ceiling; None when the ceilings it needs were not measured."""
        return max(self.bounds(op, workload).values(), default=None)

    def binding(self, op: Op, workload: Workload) -> str | None:
        """The ceiling that keeps the workload from being faster: `DRAM bandwidth`, `bf16 peak`, `call overhead`."""
        bounds = self.bounds(op, workload)
        return max(bounds, key=bounds.__getitem__) if bounds else None

    def least_seconds(self, op: Op, workload: Workload) -> float | None:
        """The floor of plausible times: a shorter one is a measuring error. None when no ceiling is known.

        Generous on purpose: any probe's best bandwidth at a quarter of the footprint or more, the best peak of any
        dtype of the same size, and a margin.
        """
        size, work, wide = op.least_bytes(workload), op.operations(workload), ITEMSIZE[arithmetic(op, workload)]
        largest = max((c.footprint for c in self.bandwidths), default=0)
        enough = min(size / 4, largest)
        bandwidth = max((c.value for c in self.bandwidths if c.footprint >= enough), default=None)
        peak = max((c.value for c in self.peaks if ITEMSIZE[c.dtype] == wide), default=None)
        floors = [
            amount / best for amount, best in ((op.traffic(workload), bandwidth), (work, peak)) if best is not None
        ]
        return PLAUSIBLE * max(floors) if floors else None


def arithmetic(op: Op, workload: Workload) -> str:
    """The dtype whose peak bounds the op: the narrowest that it reads (an int8 weight can be multiplied as int8)."""
    narrowest = min((op.dtype(operand, workload) for operand in op.inputs), key=ITEMSIZE.__getitem__)
    return "i8" if narrowest == "u8" else narrowest


def intensity(op: Op, workload: Workload) -> float:
    """Operations per byte of compulsory traffic."""
    return op.operations(workload) / max(1, op.least_bytes(workload))


def plateaus(curve: Curve, most: int = 4) -> tuple[tuple[int, int], ...]:
    """(start, end) of the flat pieces of a bandwidth curve: at least two points each, at most `most` pieces.

    Least squares on log-bandwidth over every way to cut it; a further piece must pay for itself (STEP).
    """
    logs = [math.log(value) for _, value in curve]
    if not logs:
        return ()
    best: dict[int, tuple[float, tuple[tuple[int, int], ...]]] = {0: (0.0, ())}
    answer: tuple[float, tuple[tuple[int, int], ...]] = (_scatter(logs) + STEP, ((0, len(logs)),))
    for pieces in range(1, most + 1):
        longer: dict[int, tuple[float, tuple[tuple[int, int], ...]]] = {}
        for end in range(2 * pieces, len(logs) + 1):
            options = [
                (cost + _scatter(logs[start:end]), (*cuts, (start, end)))
                for start, (cost, cuts) in best.items()
                if end - start >= 2
            ]
            if options:
                longer[end] = min(options)
        best = longer
        if len(logs) in best:
            cost, cuts = best[len(logs)]
            answer = min(answer, (cost + STEP * pieces, cuts))
    return answer[1]


def _scatter(values: Sequence[float]) -> float:
    mean = statistics.fmean(values)
    return sum((value - mean) ** 2 for value in values)


def _falling(points: Sequence[tuple[int, float]]) -> Curve:
    reached, falling = 0.0, []
    for footprint, value in reversed(points):
        reached = max(reached, value)
        falling.append((footprint, reached))
    return tuple(reversed(falling))


def _interpolated(curve: Curve, footprint: int) -> float:
    if footprint <= curve[0][0]:
        return curve[0][1]
    for (left, low), (right, high) in itertools.pairwise(curve):
        if footprint <= right:
            share = math.log(footprint / left) / math.log(right / left)
            return math.exp((1.0 - share) * math.log(low) + share * math.log(high))
    return curve[-1][1]


def _written(op: Op, workload: Workload) -> float:
    reads, writes = op.memory_passes(workload)
    return writes / (reads + writes) if writes else 0.0


def _best_by(ceilings: Iterable[Ceiling], kind: str, key: Callable[[Ceiling], Hashable]) -> list[Ceiling]:
    best: dict[Hashable, Ceiling] = {}
    for ceiling in ceilings:
        if ceiling.kind == kind and (key(ceiling) not in best or ceiling.value > best[key(ceiling)].value):
            best[key(ceiling)] = ceiling
    return list(best.values())
