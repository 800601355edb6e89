"""Drives a race over several processes until it decides or its time is up."""

from __future__ import annotations

import itertools
import uuid
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from perfsuite.measure.cpu import warned
from perfsuite.plan import FEWEST_PROCESSES, Effort
from perfsuite.policy import Policy
from perfsuite.race import Race, parade, race
from perfsuite.stats import BLOCK
from perfsuite.trial import Disturbance, Measurement
from perfsuite.worker import Candidate, Heat, Taken, Worker


@dataclass
class _Record:
    """What one entrant did so far."""

    samples: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    marks: Counter[Disturbance] = field(default_factory=Counter)

    def add(self, taken: Sequence[Taken]) -> list[float]:
        for one in taken:
            self.again += one.again
            self.marks.update(one.marks)
        new = [one.sample for one in taken]
        self.samples += new
        return new

    def measurement(self, processes: int) -> Measurement:
        warnings = sorted(warned(self.marks, len(self.samples) + len(self.again)))
        return Measurement(tuple(self.samples), 1, tuple(warnings), processes, tuple(self.again))


class Racers:
    """The processes that a race takes its blocks of rounds from, in turn; they are started when first needed.

    They are pinned to the same cores and run one at a time.
    """

    def __init__(self, cores: Sequence[int], threads: int, processes: int = FEWEST_PROCESSES) -> None:
        self.workers = [Worker(cores, threads) for _ in range(processes)]

    def race(
        self, candidates: Sequence[Candidate], policy: Policy, effort: Effort, judged: Collection[int] = ()
    ) -> list[Measurement]:
        """The samples of every candidate, for the effort's rounds or seconds (building apart); slower ones leave early.

        The race finds a fast one, and the verdict on those that are `judged`, in the effort's processes as far as there
        are so many. Raises WorkerDied.
        """
        workers = self.workers[: effort.processes]
        steps = race(len(candidates), effort.rounds, judged, processes=len(workers))
        return _driven(workers, Heat(uuid.uuid4().hex, tuple(candidates), policy), steps, effort.race_seconds)

    def rounds(self, candidates: Sequence[Candidate], policy: Policy, rounds: int) -> list[Measurement]:
        """`rounds` samples of every candidate, whoever is slower. Raises WorkerDied."""
        heat = Heat(uuid.uuid4().hex, tuple(candidates), policy)
        return _driven(self.workers, heat, parade(len(candidates), rounds), float("inf"))

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


def _driven(workers: Sequence[Worker], heat: Heat, steps: Race, seconds: float) -> list[Measurement]:
    records = [_Record() for _ in heat.candidates]
    active = next(steps)
    for seed, worker in enumerate(itertools.cycle(workers)):
        block = worker.race(heat, active, BLOCK, seed)
        seconds -= block.seconds
        samples = [records[at].add(taken) for at, taken in zip(active, block.taken)]
        try:
            active = steps.send((samples, seconds <= 0.0))
        except StopIteration:
            break
    return [record.measurement(len(workers)) for record in records]
