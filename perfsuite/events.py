"""What happens while tuning, as values: `tune` yields them, `progress` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perfsuite.kernel import Config, Kernel
from perfsuite.op import Workload
from perfsuite.plan import Refusal
from perfsuite.trial import Failure, Measurement


@dataclass(frozen=True)
class Started:
    """Tuning begins: how many trials it may make at most."""

    jobs: int
    trials: int
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True)
class Entered:
    """A stage of the tuning begins (`probes`, `survey` or `search`) with so many workloads."""

    stage: str
    workloads: int


@dataclass(frozen=True)
class Tried:
    """One config was tried (or was known). `at` of `of` trials of this workload; times in seconds."""

    workload: Workload
    kernel: Kernel
    config: Config
    outcome: Measurement | Failure
    known: bool
    at: int
    of: int
    best: float
    default: float
    ideal: float | None


@dataclass(frozen=True)
class Raced:
    """The race of a workload ended (or was known)."""

    workload: Workload
    entrants: int
    known: bool


@dataclass(frozen=True)
class Finished:
    """The sums of the whole run, times in seconds.

    Of the workloads, `searched` have a finished search and its race, `shortened` a race after a search that the budget
    cut, `left` neither; `probes_left` ceilings were not measured. `complete` says that nothing is left to do.
    `spent` are the seconds of each stage of the timing, of the builds and of the rest (`Timeline.spent`).
    """

    trials_new: int
    trials_known: int
    failed: int
    refused: int
    races: int
    seconds: float
    budget: float | None
    searched: int
    shortened: int
    left: int
    probes_left: int
    spent: Mapping[str, float]

    @property
    def complete(self) -> bool:
        return not (self.shortened or self.left or self.probes_left)


Event = Started | Entered | Tried | Raced | Finished
