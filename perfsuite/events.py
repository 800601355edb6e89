"""What happens while tuning, as values: `tune` yields them, `progress` shows them."""

from __future__ import annotations

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
    """The sums of the whole run; `complete` is False when the budget ended it."""

    trials_new: int
    trials_known: int
    failed: int
    refused: int
    races: int
    seconds: float
    complete: bool


Event = Started | Tried | Raced | Finished
