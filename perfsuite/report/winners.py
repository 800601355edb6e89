"""The winners and what they are worth: against the default, against inductor, against the ceilings, per model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from perfsuite.kernel import Config
from perfsuite.op import Op
from perfsuite.report.evidence import Evidence
from perfsuite.roofline import arithmetic, intensity
from perfsuite.table import Entry
from perfsuite.trial import Trial


@dataclass(frozen=True)
class Timing:
    """The best time of some kernels on the winner's workload; `paired`: from the very race that the winner won."""

    kernel: str
    config: Config
    seconds: float
    paired: bool


@dataclass(frozen=True)
class Winner:
    """One entry of the table in the light of everything else; what was not measured is None.

    `challenger` is the best kernel that is no default, when a default kernel won.
    """

    entry: Entry
    family: str
    models: tuple[tuple[str, int], ...]
    default: Timing | None
    inductor: Timing | None
    challenger: Timing | None
    op: Op | None
    moving_seconds: float | None
    ideal_seconds: float | None
    binding: str | None

    @property
    def share(self) -> float | None:
        """The part of its binding ceiling that the winner reaches."""
        return None if self.ideal_seconds is None else self.ideal_seconds / self.entry.seconds

    @property
    def memory_passes(self) -> tuple[float, float]:
        """Reads and writes of the op's tensors, in units of the largest; (0, 0) of an op that no longer exists."""
        return self.op.memory_passes(self.entry.workload) if self.op else (0.0, 0.0)

    @property
    def speedup(self) -> float | None:
        return self.default.seconds / self.entry.seconds if self.default else None

    @property
    def dtype(self) -> str:
        """The dtype whose peak bounds it."""
        return arithmetic(self.op, self.entry.workload) if self.op else self.entry.workload.dtype

    @property
    def intensity(self) -> float:
        """Operations per byte; 0.0 of an op that no longer exists."""
        return intensity(self.op, self.entry.workload) if self.op else 0.0

    @property
    def label(self) -> str:
        """Short name of the workload for pictures: `softmax 4096×1024 f32`."""
        workload = self.entry.workload
        return f"{workload.op} {'×'.join(str(length) for _, length in workload.sizes)} {workload.dtype}"


def winners(evidence: Evidence) -> tuple[Winner, ...]:
    """Every winner but those among the probes (they are the ceilings), by family, op and size."""
    found = [_winner(evidence, entry) for entry in evidence.entries]
    wanted = [winner for winner in found if winner.family != "probes"]
    return tuple(sorted(wanted, key=lambda w: (w.family, w.entry.workload.op, w.entry.workload.dtype, _length(w))))


def _length(winner: Winner) -> tuple[int, ...]:
    return tuple(length for _, length in winner.entry.workload.sizes)


def _winner(evidence: Evidence, entry: Entry) -> Winner:
    race = [evidence.raced[i] for i in entry.trials if i in evidence.raced]
    configs = evidence.times.get(entry.workload, {})
    op = evidence.ops.get(entry.workload.op)
    won = Timing(entry.kernel, entry.config, entry.seconds, True)
    is_default = entry.kernel in evidence.defaults
    ceilings = evidence.ceilings
    return Winner(
        entry=entry,
        family=evidence.family(entry.workload),
        models=evidence.models(entry.workload),
        default=won if is_default else _best(race, configs, lambda kernel: kernel in evidence.defaults),
        inductor=won if is_inductor(entry.kernel) else _best(race, configs, is_inductor),
        challenger=_best(race, configs, lambda kernel: kernel not in evidence.defaults) if is_default else None,
        op=op,
        moving_seconds=ceilings.moving_seconds(op, entry.workload) if op else None,
        ideal_seconds=ceilings.ideal_seconds(op, entry.workload) if op else None,
        binding=ceilings.binding(op, entry.workload) if op else None,
    )


def is_inductor(kernel: str) -> bool:
    return kernel.rpartition("/")[2].startswith("inductor")


def _best(
    race: Sequence[Trial], configs: Mapping[str, Mapping[Config, float]], chosen: Callable[[str], bool]
) -> Timing | None:
    paired = [Timing(t.kernel, t.config, t.seconds, True) for t in race if chosen(t.kernel)]
    searched = [
        Timing(kernel, config, seconds, False)
        for kernel, tried in configs.items()
        if chosen(kernel)
        for config, seconds in tried.items()
    ]
    return min(paired or searched, key=lambda timing: timing.seconds, default=None)


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))
